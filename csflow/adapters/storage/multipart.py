"""Upload large objects in parts; parts that an interrupted upload of the same content sent are not sent again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from csflow.adapters.storage.content import Content
from csflow.adapters.storage.parallel import in_parallel
from csflow.system.object_store import refusal_code

Parts: TypeAlias = "dict[int, Mapping[str, Any]]"
"""Parts that the store already has, by number."""


def send_in_parts(client: Any, bucket: str, key: str, content: Content, *, workers: int) -> None:
    """Upload content in parts; parts that the store already has are kept.

    If another process finishes or drops the upload in the meantime, it is started again, once.

    Args:
        client: A boto3 client.
        bucket: Name of the bucket.
        key: Key of the object.
        content: The content.
        workers: Number of parts sent at once.

    Raises:
        botocore.exceptions.ClientError: If the store refuses.
    """
    from botocore.exceptions import ClientError

    upload, present = _left_behind(client, bucket, key, content)
    try:
        _send(client, {"Bucket": bucket, "Key": key}, content, upload, present, workers)
    except ClientError as error:
        if refusal_code(error) != "NoSuchUpload":
            raise
        _send(client, {"Bucket": bucket, "Key": key}, content, None, {}, workers)


def _send(
    client: Any, where: Mapping[str, str], content: Content, upload: str | None, present: Parts, workers: int
) -> None:
    sums = content.sums
    if upload is None:
        begun = client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256", Metadata={"sha256": sums.sha256})
        upload = begun["UploadId"]

    def send(number: int) -> dict[str, Any]:
        checksum = sums.checksum(number)
        etag = (
            present[number]["ETag"]
            if number in present
            else client.upload_part(
                **where, UploadId=upload, PartNumber=number, Body=content.part(number), ChecksumSHA256=checksum
            )["ETag"]
        )
        return {"PartNumber": number, "ETag": etag, "ChecksumSHA256": checksum}

    parts = in_parallel(send, range(1, content.parts + 1), workers)
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})


def _left_behind(client: Any, bucket: str, key: str, content: Content) -> tuple[str | None, Parts]:
    """Find an unfinished upload all of whose parts belong to this content, and these parts.

    Nothing is found if the credentials do not allow listing uploads.
    """
    from botocore.exceptions import ClientError

    with suppress(ClientError):
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key):
            for upload in page.get("Uploads", []):
                if upload["Key"] == key:
                    parts = _parts(client, bucket, key, upload["UploadId"])
                    if parts and all(content.sums.is_part(number, part) for number, part in parts.items()):
                        return str(upload["UploadId"]), parts
    return None, {}


def _parts(client: Any, bucket: str, key: str, upload: str) -> Parts:
    pages = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload)
    return {part["PartNumber"]: part for page in pages for part in page.get("Parts", [])}

"""Large objects in parts: what an interrupted upload of the same content left behind is not sent again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from csflow.adapters.storage.content import Content
from csflow.adapters.storage.parallel import in_parallel
from csflow.system.object_store import refusal_code

Parts: TypeAlias = "dict[int, Mapping[str, Any]]"
"""Parts that the store has, by number."""


def send_in_parts(client: Any, bucket: str, key: str, content: Content, *, workers: int) -> None:
    """Upload content in parts; parts that are there are kept.

    An upload that another process finishes or drops in the meantime is begun anew, once.

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
    """An unfinished upload all of whose parts are this content's, and these parts.

    Where listing uploads is not allowed, nothing is found.
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

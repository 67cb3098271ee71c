#!/bin/sh
# What the build stages of both images install: install.sh requirements FILE | install.sh code FOLDER.
# INDEX_URL and CA_BUNDLE are build arguments; neither reaches the final stage.
set -eu
[ -z "${INDEX_URL:-}" ] || export PIP_INDEX_URL="$INDEX_URL" UV_DEFAULT_INDEX="$INDEX_URL"
[ -z "${CA_BUNDLE:-}" ] || export PIP_CERT="/ca/$CA_BUNDLE" SSL_CERT_FILE="/ca/$CA_BUNDLE"
# Bytecode is compiled here, because on a read-only root every start would compile all its imports again.
export UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_HTTP_TIMEOUT=300 UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 NO_COLOR=1

if [ ! -x /tools/bin/uv ]; then
  python3 -m venv /tools
  /tools/bin/pip install --quiet --no-cache-dir --disable-pip-version-check uv
fi
case $1 in
  requirements)
    /tools/bin/uv venv --quiet --python "$(command -v python3)" /opt/csflow
    /tools/bin/uv pip sync --python /opt/csflow/bin/python "$2"
    # Only a linker needs static libraries.
    find /opt/csflow -name '*.a' -delete
    # The code is in a folder of its own, so that a change of it leaves this big layer unchanged.
    site=$(/opt/csflow/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo /app/site >"$site/csflow.pth" ;;
  code)
    /tools/bin/uv pip install --python /opt/csflow/bin/python --no-deps --target /app/site "$2" ;;
  *)
    echo "usage: install.sh requirements FILE | code FOLDER" >&2
    exit 2 ;;
esac

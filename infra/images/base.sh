#!/usr/bin/env bash
# Make a Python base image from Debian packages where no container registry is reachable.
#
#   infra/images/base.sh [--tag NAME:TAG] [--suite SUITE] [--mirror URL] [--include PACKAGE,...] [--force]
#
# `make images` finds the image under its default name. It contains a minimal Debian, Python with the venv module and
# CA certificates. A mirror given here is written to the image's apt sources, so that a later apt-get install in it
# uses the same mirror.
set -euo pipefail

tag=csflow-base:bookworm suite=bookworm mirror='' include='' force=''
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    --tag | --suite | --mirror | --include)
      [ $# -ge 2 ] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift 2 ;;
    --force) force=1; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; fail "unknown option $1" ;;
  esac
done

command -v docker >/dev/null || fail "Docker is not installed. Install it (Debian: apt-get install docker.io)."
command -v mmdebstrap >/dev/null || fail "mmdebstrap is not installed. Install it (Debian: apt-get install mmdebstrap)."
docker info >/dev/null 2>&1 || fail "No Docker engine answers. Start one, or set DOCKER_HOST to the address of one."
if [ -z "$force" ] && docker image inspect "$tag" >/dev/null 2>&1; then
  echo "$tag exists already (--force makes it again)."
  exit 0
fi

# Without root mmdebstrap needs user namespaces, which it checks and explains by itself.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=python3,python3-venv,ca-certificates${include:+,$include}
echo "Debian $suite with $packages ..."
mmdebstrap --quiet --variant=minbase --include="$packages" \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  "$suite" "$folder/root.tar" ${mirror:+"$mirror"} >"$folder/log" 2>&1 ||
  { tail -n 20 "$folder/log" >&2; fail "mmdebstrap failed. Check --suite and --mirror."; }
docker import --change 'ENV LANG=C.UTF-8' --change 'CMD ["python3"]' "$folder/root.tar" "$tag" >/dev/null
docker image inspect --format "$tag: {{.Size}} bytes" "$tag"

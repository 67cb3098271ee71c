#!/bin/sh
# Prepare the base in the final stages of both images: remove the installers and add a user without rights.
set -eu
for python in /usr/lib/python3* /usr/local/lib/python3*; do
  rm -rf "$python/ensurepip" "$python"/*-packages/pip "$python"/*-packages/pip-* \
    "$python"/*-packages/setuptools* "$python"/*-packages/wheel* "$python"/*-packages/_distutils_hack
done
rm -rf /usr/share/python-wheels /usr/local/bin/pip* /usr/bin/pip* /root/.cache /var/lib/apt/lists/* /var/cache/apt/*.bin \
  /var/cache/apt/archives/*.deb /var/log/*.log /var/log/apt
echo 'csflow:x:10001:' >>/etc/group
echo 'csflow:x:10001:10001:csflow:/tmp:/usr/sbin/nologin' >>/etc/passwd

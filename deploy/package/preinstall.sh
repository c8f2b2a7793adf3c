#!/bin/sh
# Makes the user and the group of the service. A removal of the package leaves them, because they may still own files.
set -e
if ! getent group outbox-cdc >/dev/null; then
	groupadd --system outbox-cdc
fi
if ! getent passwd outbox-cdc >/dev/null; then
	useradd --system --gid outbox-cdc --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin \
		--comment "outbox-cdc" outbox-cdc
fi

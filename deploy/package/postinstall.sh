#!/bin/sh
# Nothing is started at the first install, because the configuration has to be written first. An upgrade starts anew what runs.
# Debian calls this with "configure" and the version before; rpm and apk with the number of versions, or with a version alone.
set -e
chgrp outbox-cdc /etc/outbox-cdc /etc/outbox-cdc/outbox.yaml
chmod 0750 /etc/outbox-cdc
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemctl try-restart 'outbox-cdc.service' 'outbox-cdc@*.service' || true
fi

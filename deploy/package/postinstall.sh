#!/bin/sh
# The first install starts nothing, because somebody has to write the configuration first. An upgrade or a downgrade restarts the units that
# run. Owners and modes of files are part of the package. This script does not set them, so that what a person has changed stays.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemctl try-restart 'outbox-cdc.service' 'outbox-cdc@*.service' ||
		echo "outbox-cdc: a unit did not start again; see systemctl status 'outbox-cdc*'" >&2
fi

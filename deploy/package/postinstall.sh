#!/bin/sh
# Nothing is started at the first install, because the configuration has to be written first. An upgrade, or a downgrade, starts anew
# what runs. Whose the files are is in the package: what a person has changed of it stays.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
	systemctl try-restart 'outbox-cdc.service' 'outbox-cdc@*.service' ||
		echo "outbox-cdc: a unit that ran does not run now: systemctl status 'outbox-cdc*'" >&2
fi

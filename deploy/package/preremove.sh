#!/bin/sh
# Ends the service when the package is removed: "remove" on Debian, 0 versions left for rpm, and the version itself for apk, which does not
# call this for an upgrade. An upgrade leaves it running, and the postinstall script starts it anew.
set -e
case "${1:-}" in
remove | 0 | *.*)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now 'outbox-cdc.service' || true
		systemctl stop 'outbox-cdc@*.service' || true
	fi
	echo "outbox-cdc: what is in databases stays. A replication slot keeps WAL while nobody reads it, and can fill the disk."
	echo "If the connector is gone for good, install it again, and let \"outbox-cdc destroy\" remove the slot before you remove the package."
	;;
esac

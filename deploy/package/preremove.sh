#!/bin/sh
# Stops and disables every instance when the package is removed. The first argument is then "remove" on Debian, 0 (versions left) for rpm,
# and the version itself for apk, which does not call this script for an upgrade. An upgrade leaves the instances running, and the
# postinstall script restarts them.
set -e
case "${1:-}" in
remove | 0 | *.*)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now 'outbox-cdc.service' || true
		systemctl stop 'outbox-cdc@*.service' || true
		# Naming the template disables all of its instances, also those that do not run.
		systemctl disable 'outbox-cdc@.service' || true
	fi
	echo "outbox-cdc: tables and replication slots stay in the database. A replication slot keeps WAL while nobody reads it, and can fill the disk."
	echo "If you do not want the connector any more, install it again, run \"outbox-cdc destroy\", which drops the slot, and remove the package then."
	;;
esac

#!/bin/sh
# Ends the service when the package is removed: "remove" on Debian, 0 versions left for rpm. An upgrade leaves it running, and the
# postinstall script starts it anew.
set -e
case "${1:-}" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now 'outbox-cdc.service' || true
		systemctl stop 'outbox-cdc@*.service' || true
	fi
	;;
esac

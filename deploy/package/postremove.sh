#!/bin/sh
# A purge removes the directory if it is empty. dpkg has removed the package's own file from it before.
set -e
if [ "${1:-}" = purge ]; then
	rmdir /etc/outbox-cdc 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

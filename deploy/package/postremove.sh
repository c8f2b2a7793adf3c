#!/bin/sh
# A purge removes the directory, if nothing but the package's own file was in it. dpkg has removed that one.
set -e
if [ "${1:-}" = purge ]; then
	rmdir /etc/outbox-cdc 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi

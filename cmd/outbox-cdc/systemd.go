package main

import (
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/pyairtable-compose/outbox-cdc/service"
)

// systemd returns what tells systemd about this process, or nothing if systemd has not asked for it (Type=notify, WatchdogSec=).
func systemd(environ []string, logger *slog.Logger) service.Systemd {
	if !hasVariable(environ, "NOTIFY_SOCKET") {
		return service.Systemd{}
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		logger.Warn("the watchdog of systemd is not told that this process is alive", "err", err)
	}
	var once sync.Once // systemd that cannot be told once cannot be told later either
	return service.Systemd{
		Tell: func(state string) {
			if _, err := daemon.SdNotify(false, state); err != nil {
				once.Do(func() { logger.Warn("systemd cannot be told about this process", "err", err) })
			}
		},
		Clock:    daemon.SdNotifyMonotonicUsec,
		Watchdog: watchdog,
	}
}

// hasVariable reports whether environ has a variable that is not empty.
func hasVariable(environ []string, name string) bool {
	for _, v := range environ {
		if value, ok := strings.CutPrefix(v, name+"="); ok && value != "" {
			return true
		}
	}
	return false
}

// tellFailure tells systemd why the process ends, for "systemctl status".
func tellFailure(unit service.Systemd, err error) {
	if err != nil && unit.Tell != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		unit.Tell("STATUS=" + text)
	}
}

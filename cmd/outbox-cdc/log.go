package main

import (
	"io"
	"log"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// logFlags holds the flags --log-level and --log-format.
type logFlags struct{ level, format string }

func (f *logFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&f.format, "log-format", "auto", "text, json, or auto: text on a terminal, json elsewhere")
}

// logger makes the logger that the flags ask for.
func (f *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, usageError("no log level %q; write debug, info, warn or error", f.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch {
	case f.format == "text", f.format == "auto" && isTerminal(w):
		return slog.New(slog.NewTextHandler(w, options)), nil
	case f.format == "json", f.format == "auto":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, usageError("no log format %q; write auto, text or json", f.format)
}

// libraryLog takes what libraries write to the standard logger of package log, which has no other way to be told where to log.
type libraryLog struct{ logger *slog.Logger }

// takeLibraryLog makes the standard logger of package log write to this one.
func takeLibraryLog(logger *slog.Logger) {
	log.SetFlags(0)
	log.SetOutput(libraryLog{logger})
}

// unsolicited begins what net/http says of a receiver that sends more than the answer to a request. What follows quotes the receiver, who
// may have sent our own request back, with its secrets and its payload. No log has these.
const unsolicited = "Unsolicited response received on idle HTTP channel"

func (l libraryLog) Write(line []byte) (int, error) {
	if text := strings.TrimSpace(string(line)); strings.HasPrefix(text, unsolicited) {
		l.logger.Warn("a receiver has sent more than the answer to a request; the connection is closed")
	} else {
		l.logger.Warn("a library has logged this", "text", text)
	}
	return len(line), nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

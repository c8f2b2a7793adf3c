package main

import (
	"io"
	"log/slog"
	"os"

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

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

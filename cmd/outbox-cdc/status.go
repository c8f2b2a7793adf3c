package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

const (
	watchInterval = 2 * time.Second
	shortestWatch = 200 * time.Millisecond
)

// statusFlags are the flags of the command status.
type statusFlags struct {
	path           string
	output         outputFormat
	watch          bool
	interval       time.Duration
	noColor        bool
	levelIsTheCode bool
}

func newStatusCommand(environ []string) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the connector does, and what to do",
		Long: `Show on one screen how the connector does: the replication slot and how far it is behind, each sink with what waits for
it, dead letters, instances, cleanup, sizes, and what to do, the worst first. docs/status.md explains each line.

It reads the database with the connector's own login, and asks the connector's instances over HTTP, where it can. It changes
nothing. What it could not read or ask stands at the end, with the reason. It needs no running connector.

Exit code: 0 if the database could be read, whatever was found there. With --exit-code it is 1 unless there is nothing to
do. If the database cannot be read, it is that of the reason, as for every command.`,
		Example: `  outbox-cdc status --config outbox.yaml
  outbox-cdc status --watch
  outbox-cdc status -o json | jq '.sinks[] | {name, condition, rows}'
  outbox-cdc status --exit-code > /dev/null || echo 'look at the connector'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			cfg, err := loadConfig(cmd, f.path, environ, config.Options{NoSinks: true})
			if err != nil {
				return err
			}
			s := statusScreen{statusFlags: f, config: service.StatusConfig(cfg), out: cmd.OutOrStdout(), style: f.style(cmd.OutOrStdout(), environ)}
			if f.watch {
				return s.repeat(cmd.Context())
			}
			return s.once(cmd.Context())
		},
	}
	configFlag(cmd, &f.path)
	f.output.register(cmd)
	flags := cmd.Flags()
	flags.BoolVarP(&f.watch, "watch", "w", false, "show it again and again, until Ctrl-C; with -o json one object a line")
	flags.DurationVar(&f.interval, "interval", watchInterval, "how often, with --watch")
	flags.BoolVar(&f.noColor, "no-color", false, "no colours, as where the output is no terminal or NO_COLOR is set")
	flags.BoolVar(&f.levelIsTheCode, "exit-code", false, "exit code 1 unless there is nothing to do")
	return cmd
}

func (f *statusFlags) check(cmd *cobra.Command) error {
	switch changed := cmd.Flags().Changed; {
	case f.output.check() != nil:
		return f.output.check()
	case changed("interval") && !f.watch:
		return usageError("--interval is for --watch")
	case f.interval < shortestWatch:
		return usageError("--interval %s is less than %s", f.interval, shortestWatch)
	case f.watch && f.levelIsTheCode:
		return usageError("--exit-code is not for --watch, which does not end by itself")
	}
	return nil
}

// style returns whether the text has colours.
func (f *statusFlags) style(out io.Writer, environ []string) style {
	return style(!f.noColor && isTTY(out) && variable(environ, "NO_COLOR") == "" && variable(environ, "TERM") != "dumb")
}

// variable returns the last value of a variable, or "".
func variable(environ []string, name string) (value string) {
	for _, v := range environ {
		if v, found := strings.CutPrefix(v, name+"="); found {
			value = v
		}
	}
	return value
}

// statusScreen shows the status of a connector.
type statusScreen struct {
	statusFlags
	config admin.StatusConfig
	out    io.Writer
	style  style
	shown  bool // there is a screen above
}

func (s *statusScreen) once(ctx context.Context) error {
	st, err := admin.ReadStatus(ctx, s.config)
	if ctx.Err() != nil {
		return err
	}
	if wrote := s.output.write(s.out, st, statusText(st, s.style)); wrote != nil {
		return wrote
	}
	if err == nil && s.levelIsTheCode && st.Level != monitoring.LevelOK {
		return exitcode.Errorf(exitcode.Failure, "the status is %s", st.Level)
	}
	return err
}

// repeat shows the status until ctx ends. A database that cannot be read does not end it: the screen says so, and the next one may be
// better.
func (s *statusScreen) repeat(ctx context.Context) error {
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	for {
		st, _ := admin.ReadStatus(ctx, s.config) // the status has the error
		if ctx.Err() != nil {
			return nil
		}
		if err := s.write(st); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// write shows one status of several: in the place of the one before where the output is a terminal, below it elsewhere.
func (s *statusScreen) write(st admin.Status) error {
	if s.output == "json" {
		return json.NewEncoder(s.out).Encode(st)
	}
	text := statusText(st, s.style)
	switch {
	case isTTY(s.out):
		width, height := terminalSize(s.out)
		text = inPlace(text, width, height)
	case s.shown:
		text = "\n" + text
	}
	s.shown = true
	_, err := io.WriteString(s.out, text)
	return err
}

// escapes are what colours a text.
var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// inPlace returns what draws a text over what the terminal shows, cut to its height. A line that is longer than the terminal's takes several
// of those. The empty lines go first, because what is to be done stands at the end.
func inPlace(text string, width, height int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	takes := func(line string) int {
		if n := utf8.RuneCountInString(escapes.ReplaceAllString(line, "")); width > 0 && n > width {
			return (n + width - 1) / width
		}
		return 1
	}
	all := 0
	for _, line := range lines {
		all += takes(line)
	}
	if height > 1 && all >= height {
		lines = slices.DeleteFunc(lines, func(line string) bool {
			if line == "" && all >= height {
				all--
				return true
			}
			return false
		})
	}
	if height > 1 && all >= height {
		fit, used := 0, 0
		for used+takes(lines[fit]) <= height-2 {
			used += takes(lines[fit])
			fit++
		}
		left := len(lines) - fit
		lines = append(lines[:fit:fit], fmt.Sprintf("… %d more lines: make the window higher", left))
	}
	const home, clearLine, clearBelow = "\x1b[H", "\x1b[K", "\x1b[J"
	return home + strings.Join(lines, clearLine+"\n") + clearLine + "\n" + clearBelow
}

// terminalSize returns the columns and lines of the terminal, or 0 if nobody knows.
func terminalSize(out io.Writer) (width, height int) {
	if f, ok := out.(*os.File); ok {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil {
			return width, height
		}
	}
	return 0, 0
}

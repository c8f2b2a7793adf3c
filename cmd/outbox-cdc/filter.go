package main

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
)

// filterFlags holds the flags by which a command selects events.
type filterFlags struct {
	filter       admin.Filter
	since, until string
	cmd          *cobra.Command
}

func (f *filterFlags) register(cmd *cobra.Command, path *string, environ []string) {
	flags := cmd.Flags()
	f.cmd = cmd
	flags.StringSliceVar(&f.filter.Sinks, "sink", nil, "of these `sinks` only, with commas between; none: what belongs to no sink")
	flags.StringVar(&f.filter.Type, "type", "", "of this event `type`; * and ? as in routes")
	flags.StringVar(&f.filter.Aggregate, "aggregate", "", "of this aggregate, `type/id`, or of all of a type")
	flags.StringVar(&f.filter.Tenant, "tenant", "", "of this `tenant`")
	flags.StringVar(&f.filter.Error, "error", "", "whose error has this `text` in it, in any case")
	flags.StringVar(&f.since, "since", "", "parked (or tried, or made) since this `time`: 2006-01-02T15:04:05Z, 2006-01-02 (UTC), or 90m, 3d ago")
	flags.StringVar(&f.until, "until", "", "and before this `time`")
	flags.StringSliceVar(&f.filter.IDs, "id", nil, "with these event `ids`, with commas between")
	completeSinks(cmd, path, environ)
}

// parse returns the filter that the flags describe, or a usage error.
func (f *filterFlags) parse(now time.Time) (admin.Filter, error) {
	// An empty value is refused: a script's variable that is not set must not lead to a filter that selects all.
	for _, name := range []string{"sink", "type", "aggregate", "tenant", "error", "since", "until", "id"} {
		if flag := f.cmd.Flags().Lookup(name); flag.Changed && (flag.Value.String() == "" || flag.Value.String() == "[]") {
			return admin.Filter{}, usageError("--%s names nothing", name)
		}
	}
	var err error
	if f.filter.Since, err = parseTime("since", f.since, now); err != nil {
		return admin.Filter{}, err
	}
	if f.filter.Until, err = parseTime("until", f.until, now); err != nil {
		return admin.Filter{}, err
	}
	if !f.filter.Until.IsZero() && !f.filter.Since.Before(f.filter.Until) {
		return admin.Filter{}, usageError("--since is not before --until")
	}
	for name, values := range map[string][]string{"sink": f.filter.Sinks, "id": f.filter.IDs} {
		for i, v := range values {
			if values[i] = strings.TrimSpace(v); values[i] == "" {
				return admin.Filter{}, usageError("--%s names nothing", name)
			}
		}
	}
	return f.filter, nil
}

// parseTime reads the value of a flag, which is a time or how long ago it was. An empty value is the zero time.
func parseTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil && !t.IsZero() { // a filter takes the zero time for no time
			return t, nil
		}
	}
	days, rest, ok := strings.Cut(text, "d")
	if !ok {
		days, rest = "0", text
	}
	n, err := strconv.ParseUint(days, 10, 16)
	ago := time.Duration(0)
	if err == nil && (rest != "" || !ok) {
		ago, err = time.ParseDuration(rest)
	}
	if err != nil || n > 36500 || ago < 0 {
		return time.Time{}, usageError("--%s %q is no time; write 2006-01-02T15:04:05Z, 2006-01-02, or how long ago: 90m, 3d, 1d12h", flag, text)
	}
	return now.AddDate(0, 0, -int(n)).Add(-ago), nil
}

// completeSinks makes the shell complete --sink from the configuration.
func completeSinks(cmd *cobra.Command, path *string, environ []string) {
	if err := cmd.RegisterFlagCompletionFunc("sink", sinkNames(path, environ)); err != nil {
		panic(err) // cannot happen: the flag exists
	}
}

// sinkNames completes the names of the ledger's sinks from the configuration. A composite "any" is one sink there; of the other
// composites the members are.
func sinkNames(path *string, environ []string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		cfg, _, err := config.LoadWith(*path, environ, config.Options{NoDSN: true, NoSinks: true})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var others []string // no sinks of the ledger
		for _, s := range cfg.Sinks {
			switch {
			case s.Composite == nil:
			case s.Composite.Strategy == config.StrategyAny:
				others = append(others, s.Composite.Members...)
			default:
				others = append(others, s.Name)
			}
		}
		var names []cobra.Completion
		for _, s := range cfg.Sinks {
			if !slices.Contains(others, s.Name) {
				names = append(names, s.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// pageFlags holds the flags --limit and --after.
type pageFlags struct {
	limit int
	after string
}

func (f *pageFlags) register(cmd *cobra.Command) {
	cmd.Flags().IntVar(&f.limit, "limit", 50, "how many, 1 to 10000")
	cmd.Flags().StringVar(&f.after, "after", "", "go on `where` the list before has ended")
}

func (f *pageFlags) check() error {
	if f.limit < 1 || f.limit > 10_000 {
		return usageError("--limit %d is not within 1 and 10000", f.limit)
	}
	return nil
}

// checkFlags runs the checks in order and returns the first error.
func checkFlags(checks ...func() error) error {
	for _, c := range checks {
		if err := c(); err != nil {
			return err
		}
	}
	return nil
}

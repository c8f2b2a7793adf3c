package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
)

const (
	// backlogSample is between the two looks of which a single answer makes the rate.
	backlogSample = time.Second
	// backlogLines is how often "backlog --watch" says something where there is no terminal.
	backlogLines = 10 * time.Second
)

func newBacklogCommand(environ []string) *cobra.Command {
	var (
		path   string
		watch  bool
		output outputFormat
	)
	cmd := &cobra.Command{
		Use:   "backlog",
		Short: "Show how far the jobs are that deliver a backlog",
		Long: `Show the jobs that "init --backlog", "resync" and "backlog: all" of a new sink file, and that a connector files when the
slot was moved or the server was promoted. A job compares the rows of the outbox with the ledger, and parks what its
sink was not given, to be delivered. "outbox-cdc run" works on it. Jobs that have finished are shown for a day.

How many rows there are is an estimate. --watch shows bars on a terminal and lines elsewhere, until all jobs have
finished. If PostgreSQL goes away meanwhile, it says so on stderr and goes on when the server is back.`,
		Example: `  outbox-cdc backlog --config outbox.yaml
  outbox-cdc backlog --watch`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			cfg, err := adminConfig(cmd, path, environ)
			if err != nil {
				return err
			}
			b := backlogView{
				read: func(ctx context.Context) ([]admin.BacklogJob, error) { return admin.Backlog(ctx, cfg) },
				w:    cmd.OutOrStdout(), errors: cmd.ErrOrStderr(), asJSON: output == "json", bars: output == "text" && isTTY(cmd.OutOrStdout()),
				height: func() int { _, height := terminalSize(cmd.OutOrStdout()); return height },
			}
			if watch {
				return b.watch(cmd.Context())
			}
			jobs, err := b.twice(cmd.Context())
			if err != nil {
				return err
			}
			return output.write(b.w, map[string]any{"jobs": jobs}, backlogText(jobs))
		},
	}
	ledgerFlags(cmd, &path)
	output.register(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until all jobs have finished; with -o json one object a line")
	return cmd
}

// backlogView shows jobs.
type backlogView struct {
	read   func(context.Context) ([]admin.BacklogJob, error)
	w      io.Writer
	errors io.Writer // of a watch that goes on in spite of them
	asJSON bool
	bars   bool
	height func() int // of the terminal in lines; 0 if nobody knows
	rates  admin.BacklogWatch
	drawn  int // lines of bars
}

func (b *backlogView) look(ctx context.Context) (jobs []admin.BacklogJob, unfinished bool, err error) {
	jobs, err = b.read(ctx)
	b.rates.Add(time.Now(), jobs)
	for _, j := range jobs {
		unfinished = unfinished || j.Finished.IsZero()
	}
	return jobs, unfinished, err
}

// twice looks twice if a job is not finished, so that there is a rate.
func (b *backlogView) twice(ctx context.Context) ([]admin.BacklogJob, error) {
	jobs, unfinished, err := b.look(ctx)
	if err != nil || !unfinished {
		return jobs, err
	}
	if err := wait.For(ctx, backlogSample); err != nil {
		return nil, err
	}
	jobs, _, err = b.look(ctx)
	return jobs, err
}

// watch shows the jobs until all have finished. Only the first look has to succeed: later a server that restarts is asked again, however
// long it takes, as "run" does it. What no further look can mend ends the watch.
func (b *backlogView) watch(ctx context.Context) error {
	every := backlogLines
	if b.bars {
		every = backlogSample
	}
	told := ""
	var past map[int64]bool
	for first := true; ; first = false {
		jobs, unfinished, err := b.look(ctx)
		pause := every
		switch {
		case ctx.Err() != nil:
			return nil // Ctrl-C
		case err != nil && (first || exitcode.Of(err).Final()):
			return err
		case err != nil:
			pause = backlogSample
			if told != err.Error() {
				told = err.Error()
				b.drawn = 0 // the next bars come below what this says
				fmt.Fprintf(b.errors, "%s; asking again until it answers\n", told)
			}
		default:
			told = ""
			if first && unfinished {
				past = finishedOf(jobs)
			}
			jobs = slices.DeleteFunc(jobs, func(j admin.BacklogJob) bool { return past[j.ID] })
			if err := b.show(jobs); err != nil || !unfinished {
				return err
			}
		}
		if wait.For(ctx, pause) != nil {
			return nil // Ctrl-C
		}
	}
}

// finishedOf returns the ids of the jobs that have finished.
func finishedOf(jobs []admin.BacklogJob) map[int64]bool {
	ids := map[int64]bool{}
	for _, j := range jobs {
		ids[j.ID] = !j.Finished.IsZero()
	}
	return ids
}

func (b *backlogView) show(jobs []admin.BacklogJob) error {
	if b.asJSON {
		return json.NewEncoder(b.w).Encode(map[string]any{"jobs": jobs})
	}
	if len(jobs) == 0 {
		_, err := io.WriteString(b.w, noJobs)
		return err
	}
	var text strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", b.drawn) // up, over the bars of before
	}
	if b.bars {
		lines := barLines(jobs, b.height())
		b.drawn = len(lines)
		for _, line := range lines {
			// A line that went on in the next one, because the terminal is narrow, would not be drawn over. It ends at the edge.
			text.WriteString("\x1b[?7l\x1b[2K" + line + "\x1b[?7h\n")
		}
	} else {
		for _, j := range jobs {
			text.WriteString(j.Sink + ": " + jobText(j) + "\n")
		}
	}
	_, err := io.WriteString(b.w, text.String())
	return err
}

// barLines are the bars of jobs. What would leave the screen at its top could not be drawn over, so of more jobs than it has lines only
// some are shown, those that are not finished first.
func barLines(jobs []admin.BacklogJob, height int) (lines []string) {
	jobs = slices.Clone(jobs)
	more := 0
	if height > 2 && len(jobs) > height-1 {
		slices.SortStableFunc(jobs, func(a, b admin.BacklogJob) int {
			return cmp.Compare(a.Finished.Unix(), b.Finished.Unix()) // the zero time comes first
		})
		more = len(jobs) - (height - 2)
		jobs = jobs[:height-2]
	}
	for _, j := range jobs {
		lines = append(lines, fmt.Sprintf("%-20s %s %s", j.Sink, barText(j), besideBar(j)))
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("… %d more jobs: make the window higher", more))
	}
	return lines
}

const noJobs = "no jobs: no backlog is being delivered\n"

func backlogText(jobs []admin.BacklogJob) string {
	if len(jobs) == 0 {
		return noJobs
	}
	var rows [][]string
	for _, j := range jobs {
		filter := j.Where
		if !j.Since.IsZero() {
			filter = "since " + j.Since.Format(time.RFC3339)
		}
		rows = append(rows, []string{j.Sink, string(j.Reason), j.Filed.Format(time.RFC3339), fmt.Sprint(j.Parked), jobText(j), filter})
	}
	return tableText("SINK REASON FILED MISSING PROGRESS FILTER", rows)
}

// share is how much of its rows a job has compared, from 0 to 1. ok is false if nobody knows.
func share(j admin.BacklogJob) (part float64, ok bool) {
	switch {
	case !j.Finished.IsZero() && !j.Replaced:
		return 1, true
	case j.Estimate <= 0:
		return 0, false
	}
	return min(float64(j.Walked)/float64(j.Estimate), 0.99), true // the number of rows is an estimate
}

// jobText says how far a job is.
func jobText(j admin.BacklogJob) string {
	if !j.Finished.IsZero() {
		how := "finished"
		if j.Replaced {
			how = "replaced by a later job"
		}
		return fmt.Sprintf("%s at %s: %d rows compared, %d were missing", how, j.Finished.UTC().Format(time.RFC3339), j.Walked, j.Parked)
	}
	text := fmt.Sprintf("%d rows compared", j.Walked)
	if part, ok := share(j); ok {
		text = fmt.Sprintf("%.0f %%: %d of about %d rows compared", 100*part, j.Walked, j.Estimate)
	}
	if j.Rate != nil {
		text += ", " + jobRateText(j)
	}
	if j.Left != nil {
		text += ", " + jobLeftText(j)
	}
	return text
}

// besideBar says how far a job is, what matters most first.
func besideBar(j admin.BacklogJob) string {
	if j.Replaced {
		return fmt.Sprintf("replaced by a later job, %d of %d rows were missing", j.Parked, j.Walked)
	}
	if !j.Finished.IsZero() {
		return fmt.Sprintf("finished, %d of %d rows were missing", j.Parked, j.Walked)
	}
	rows, text := fmt.Sprintf("%d rows compared", j.Walked), ""
	if part, ok := share(j); ok {
		rows, text = fmt.Sprintf("%d of about %d rows compared", j.Walked, j.Estimate), fmt.Sprintf("%.0f %%, ", 100*part)
	}
	if j.Left != nil {
		text += jobLeftText(j) + ", "
	}
	if j.Rate != nil {
		text += jobRateText(j) + ", "
	}
	return text + rows
}

func jobLeftText(j admin.BacklogJob) string {
	return "about " + time.Duration(*j.Left*float64(time.Second)).Round(time.Second).String() + " left"
}

func jobRateText(j admin.BacklogJob) string { return fmt.Sprintf("%.0f a second", *j.Rate) }

// barText draws how far a job is.
func barText(j admin.BacklogJob) string {
	const width = 24
	part, ok := share(j)
	if !ok {
		return "[" + strings.Repeat("?", width) + "]"
	}
	done := int(part * width)
	return "[" + strings.Repeat("#", done) + strings.Repeat(".", width-done) + "]"
}

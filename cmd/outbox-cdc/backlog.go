package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pyairtable-compose/outbox-cdc/admin"
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
finished.`,
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
			b := backlogView{cfg: cfg, w: cmd.OutOrStdout(), asJSON: output == "json", bars: output == "text" && isTTY(cmd.OutOrStdout())}
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
	cfg    admin.Config
	w      io.Writer
	asJSON bool
	bars   bool
	rates  admin.BacklogWatch
	drawn  int // lines of bars
}

func (b *backlogView) look(ctx context.Context) (jobs []admin.BacklogJob, unfinished bool, err error) {
	jobs, err = admin.Backlog(ctx, b.cfg)
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

// watch shows the jobs until all have finished.
func (b *backlogView) watch(ctx context.Context) error {
	every := backlogLines
	if b.bars {
		every = backlogSample
	}
	for {
		jobs, unfinished, err := b.look(ctx)
		if err != nil {
			return err
		}
		if err := b.show(jobs); err != nil || !unfinished {
			return err
		}
		if wait.For(ctx, every) != nil {
			return nil // Ctrl-C
		}
	}
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
	for _, j := range jobs {
		line := j.Sink + ": " + jobText(j)
		if b.bars {
			// A line that went on in the next one, because the terminal is narrow, would not be drawn over. It ends at the edge.
			line = fmt.Sprintf("\x1b[?7l\x1b[2K%-20s %s %s\x1b[?7h", j.Sink, barText(j), besideBar(j))
		}
		text.WriteString(line + "\n")
	}
	if b.bars {
		b.drawn = len(jobs)
	}
	_, err := io.WriteString(b.w, text.String())
	return err
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
	case !j.Finished.IsZero():
		return 1, true
	case j.Estimate <= 0:
		return 0, false
	}
	return min(float64(j.Walked)/float64(j.Estimate), 0.99), true // the number of rows is an estimate
}

// jobText says how far a job is.
func jobText(j admin.BacklogJob) string {
	if !j.Finished.IsZero() {
		return fmt.Sprintf("finished at %s: %d rows compared, %d were missing", j.Finished.UTC().Format(time.RFC3339), j.Walked, j.Parked)
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

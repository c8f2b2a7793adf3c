package main

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra/doc"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// A test makes what ships beside the binary, so that the generator of man pages is no part of the binary.
var (
	shipped     = flag.String("shipped", "", "`directory` in which man pages and completions are made")
	shippedDate = flag.String("shipped-date", "2026-01-01T00:00:00Z", "date of the man pages")
)

// TestShipped makes man pages and completions of all commands.
func TestShipped(t *testing.T) {
	dir := *shipped
	if dir == "" {
		dir = t.TempDir()
	}
	date, err := time.Parse(time.RFC3339, *shippedDate)
	if err != nil {
		t.Fatal(err)
	}
	// The environment of who builds must not stand in a page, as the default of a flag.
	root := newRootCommand(nil)
	refuseUnknown(root)
	root.DisableAutoGenTag = true
	man, completions := filepath.Join(dir, "man"), filepath.Join(dir, "completions")
	for _, d := range []string{man, completions} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	header := &doc.GenManHeader{Title: "OUTBOX-CDC", Section: "1", Date: &date, Source: "outbox-cdc", Manual: "outbox-cdc"}
	if err := doc.GenManTree(root, header, man); err != nil {
		t.Fatal(err)
	}
	pages, err := filepath.Glob(filepath.Join(man, "*.1"))
	if err != nil || len(pages) < 30 {
		t.Fatalf("%d man pages, %v", len(pages), err)
	}
	for _, page := range pages {
		zip(t, page)
	}
	for name, write := range map[string]func(io.Writer) error{
		"outbox-cdc.bash": func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"_outbox-cdc":     root.GenZshCompletion,
		"outbox-cdc.fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(completions, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	checkPage(t, filepath.Join(man, "outbox-cdc-run.1.gz"), "SIGHUP reads the configuration again")
}

// zip puts a gzip of a page in its place. The header holds neither its name nor a time, so that a second build has the same bytes.
func zip(t *testing.T, page string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(page+".gz", b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(page); err != nil {
		t.Fatal(err)
	}
}

func checkPage(t *testing.T, path string, tells ...string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, tell := range tells {
		if !strings.Contains(string(b), tell) {
			t.Errorf("%s lacks %q", path, tell)
		}
	}
}

// The package's own configuration is valid, and says nothing that the example does not know.
func TestPackagedConfiguration(t *testing.T) {
	t.Parallel()
	d, err := config.ReadDocument("../../deploy/package/outbox.yaml", nil, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, warnings, err := d.Load()
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v", err, warnings)
	}
	if len(c.Sinks) != 1 || c.Sinks[0].Type != config.SinkKafka {
		t.Errorf("sinks %+v", c.Sinks)
	}
}

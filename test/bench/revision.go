//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// revision is one of the two connectors that a comparison measures.
type revision struct {
	Name   string `json:"name"`            // what the table calls it
	Commit string `json:"commit"`          // abbreviated; of the working tree the commit that it is based on
	Title  string `json:"title"`           // of the commit
	Dirty  bool   `json:"dirty,omitempty"` // the working tree has changes that are not committed
	tree   string // where the sources are
	binary string // the product, built from them
}

func (r revision) String() string {
	if r.Dirty {
		return fmt.Sprintf("%s with changes that are not committed (%s)", r.Commit, r.Title)
	}
	return fmt.Sprintf("%s (%s)", r.Commit, r.Title)
}

// findRevisions finds the old revision and the working tree in the repository that the current directory is in.
func findRevisions(ctx context.Context, wanted string) (old, now revision, err error) {
	top, err := git(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		return old, now, fmt.Errorf("find the repository: %w", err)
	}
	if old, err = findRevision(ctx, wanted); err != nil {
		return old, now, fmt.Errorf("unknown revision %q; name a commit, tag or branch of this repository: %w", wanted, err)
	}
	old.Name = "old"
	if now, err = findRevision(ctx, "HEAD"); err != nil {
		return old, now, err
	}
	changes, err := git(ctx, "status", "--porcelain")
	if err != nil {
		return old, now, err
	}
	now.Name, now.tree, now.Dirty = "new", top, changes != ""
	return old, now, nil
}

func findRevision(ctx context.Context, name string) (r revision, err error) {
	commit, err := git(ctx, "rev-parse", "--verify", "--end-of-options", name+"^{commit}")
	if err != nil {
		return r, err
	}
	text, err := git(ctx, "log", "-1", "--format=%h %s", commit)
	r.Commit, r.Title, _ = strings.Cut(text, " ")
	return r, err
}

// checkOut writes the files of a revision into a new directory. It makes no git worktree: that would leave an entry in
// the repository if this process were killed.
func checkOut(ctx context.Context, commit, dir string) error {
	top, err := git(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	file := dir + ".tar"
	defer os.Remove(file)
	if _, err := git(ctx, "-C", top, "archive", "--format=tar", "--output="+file, commit); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "tar", "-x", "-f", file, "-C", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("write the files of %s: %w\n%s", commit, err, out)
	}
	return nil
}

// git runs git in the current directory and returns what it printed.
func git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w\n%s", strings.Join(args, " "), err, strings.TrimSpace(problems.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// buildRevisions builds both connectors, each from its own sources. They share the caches of modules and of the compiler.
func (b *bench) buildRevisions(ctx context.Context) (old, now revision, err error) {
	if old, now, err = findRevisions(ctx, b.compareWith); err != nil {
		return old, now, err
	}
	old.tree = filepath.Join(b.dir, "old")
	if err := checkOut(ctx, old.Commit, old.tree); err != nil {
		return old, now, err
	}
	for _, r := range []*revision{&old, &now} {
		process.Note("%s: building %s", r.Name, r)
		if r.binary, err = process.Build(ctx, r.tree, process.Product, filepath.Join(b.dir, "bin-"+r.Name)); err != nil {
			return old, now, fmt.Errorf("the connector of %s: %w", r, err)
		}
	}
	if old.Commit == now.Commit && !now.Dirty {
		process.Note("both are %s: the ratios show how much this machine varies", now.Commit)
	}
	return old, now, nil
}

// sameTables reports whether both revisions make the same tables, so that they can share a database.
func sameTables(old, now revision) (bool, error) {
	a, err := migrationsOf(old.tree)
	if err != nil {
		return false, err
	}
	b, err := migrationsOf(now.tree)
	return slices.Equal(a, b), err
}

// migrationsOf returns names and texts of the numbered SQL files in turn.
func migrationsOf(tree string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(tree, "migrations", "*.sql"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		all = append(all, filepath.Base(path), string(text))
	}
	return all, nil
}

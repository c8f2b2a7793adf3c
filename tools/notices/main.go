// Command notices prints the licences of all that is linked into the packages that it is given, with their texts, for all platforms
// that a release is made for. It fails if a module has no licence, or one that is not known to allow this.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A module is what "go list" says of one.
type module struct {
	Path, Version, Dir string
	Main               bool
}

func run(out io.Writer, packages []string) error {
	modules := map[string]module{}
	for _, platform := range []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"} {
		if err := linked(modules, platform, packages); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "outbox-cdc is made with the following software.\n")
	var errs []error
	sorted := slices.SortedFunc(maps.Values(modules), func(a, b module) int { return cmp.Compare(a.Path, b.Path) })
	for _, m := range append([]module{{Path: "the Go standard library", Dir: goRoot()}}, sorted...) {
		errs = append(errs, notice(&b, m))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err := b.WriteTo(out)
	return err
}

// linked adds the modules whose packages are linked on a platform.
func linked(modules map[string]module, platform string, packages []string) error {
	goos, goarch, _ := strings.Cut(platform, "/")
	args := append([]string{"list", "-deps", "-json=Module"}, packages...)
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go list for %s: %w", platform, err)
	}
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var p struct{ Module *module }
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if p.Module != nil && !p.Module.Main {
			modules[p.Module.Path] = *p.Module
		}
	}
}

func goRoot() string {
	text, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

var (
	noticeFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|notice|patents)([-.].*)?$`)
	// known are words of the licences that allow to ship binaries: MIT, BSD, ISC and Apache 2.0.
	known = []string{
		"Permission is hereby granted, free of charge", "Redistribution and use in source and binary forms",
		"Permission to use, copy, modify, and/or distribute this software", "Apache License",
	}
)

// notice writes the licence of a module, and what its authors want to be told with it.
func notice(b *bytes.Buffer, m module) error {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		return fmt.Errorf("%s: %w; run \"go mod download\"", m.Path, err)
	}
	allowed := false
	for _, e := range entries {
		if !noticeFile.MatchString(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
		if err != nil {
			return err
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		allowed = allowed || slices.ContainsFunc(known, func(k string) bool { return strings.Contains(words, k) })
		fmt.Fprintf(b, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 100), strings.TrimSpace(m.Path+" "+m.Version+" "+e.Name()), strings.TrimSpace(string(text)))
	}
	if !allowed {
		return fmt.Errorf("%s has no licence of a kind that is known here (MIT, BSD, ISC, Apache 2.0): look at it, and add it to tools/notices if it allows to ship binaries", m.Path)
	}
	return nil
}

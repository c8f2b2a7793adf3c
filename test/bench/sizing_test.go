//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestSizingPage compares the tables of docs/sizing.md with the figures from which "make sizing" made them.
func TestSizingPage(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	data, err := os.ReadFile(filepath.Join(root, measured))
	if err != nil {
		t.Fatal(err)
	}
	var s sizes
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "sizing.md"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.replaceTables(string(page))
	if err != nil {
		t.Fatal(err)
	}
	if want != string(page) {
		t.Errorf("docs/sizing.md is not what %s makes of it; run: make sizing PAGE=docs/sizing.md", measured)
	}
	if _, err := s.replaceTables("a page without tables"); err == nil {
		t.Error("no error for a page without marks")
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 7.6: "8", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := thousands(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
	for v, want := range map[float64]float64{0: 0, 3: 3, 99: 99, 123: 120, 57_921: 58_000} {
		if got := round2(v); got != want {
			t.Errorf("%v: %v, want %v", v, got, want)
		}
	}
	if got := gigabytes(6.47e12); got != "6.47 TB" {
		t.Errorf("%q", got)
	}
}

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// figure is a value that was measured, with the limit that it must keep.
type figure struct {
	Part  string  `json:"part"`
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	Limit float64 `json:"limit,omitempty"` // 0: none, unless Kind says that it counts
	Kind  string  `json:"kind,omitempty"`  // "most" or "least"
	OK    bool    `json:"ok"`
}

type report struct{ figures []figure }

func (r *report) add(f figure) {
	f.OK = f.Kind == "" || f.Kind == "most" && f.Value <= f.Limit || f.Kind == "least" && f.Value >= f.Limit
	r.figures = append(r.figures, f)
	must := ""
	switch f.Kind {
	case "most":
		must = fmt.Sprintf("  (at most %.6g)", f.Limit)
	case "least":
		must = fmt.Sprintf("  (at least %.6g)", f.Limit)
	}
	if !f.OK {
		must += "  MISSED"
	}
	fmt.Printf("%-9s %-62s %10.2f %-8s%s\n", f.Part, f.Name, f.Value, f.Unit, must)
}

func (r *report) tell(part, name string, value float64, unit string) {
	r.add(figure{Part: part, Name: name, Value: value, Unit: unit})
}

func (r *report) most(part, name string, value float64, unit string, limit float64) {
	r.add(figure{Part: part, Name: name, Value: value, Unit: unit, Limit: limit, Kind: "most"})
}

func (r *report) least(part, name string, value float64, unit string, limit float64) {
	r.add(figure{Part: part, Name: name, Value: value, Unit: unit, Limit: limit, Kind: "least"})
}

func (r *report) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r.figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func (r *report) failed() error {
	var errs []error
	for _, f := range r.figures {
		if !f.OK {
			errs = append(errs, fmt.Errorf("%s: %s is %.2f %s, must be at %s %.6g", f.Part, f.Name, f.Value, f.Unit, f.Kind, f.Limit))
		}
	}
	return errors.Join(errs...)
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

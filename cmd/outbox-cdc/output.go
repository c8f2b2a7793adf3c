package main

import (
	"encoding/json"
	"io"

	"github.com/spf13/cobra"
)

// outputFormat is the flag -o of commands that print one result.
type outputFormat string

func (f *outputFormat) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(f), "output", "o", "text", "text or json")
}

func (f *outputFormat) check() error {
	if *f != "text" && *f != "json" {
		return usageError("no output format %q; write text or json", string(*f))
	}
	return nil
}

// write writes v as JSON if that was asked for, and text otherwise.
func (f *outputFormat) write(w io.Writer, v any, text string) error {
	if *f == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	_, err := io.WriteString(w, text)
	return err
}

// listFormat is the flag -o of commands that print a list. Its values are table and json.
type listFormat struct{ outputFormat }

func (f *listFormat) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(&f.outputFormat), "output", "o", "table", "table or json")
}

func (f *listFormat) check() error {
	if f.outputFormat != "table" && f.outputFormat != "json" {
		return usageError("no output format %q; write table or json", string(f.outputFormat))
	}
	return nil
}

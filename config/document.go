package config

import (
	"errors"
	"io/fs"
	"os"
)

// Document is a configuration as it is written: the content of the file, and the environment. It refers to the files of ${file:…},
// which Load reads anew each time.
type Document struct {
	// Path is the file's, for mistakes. It is empty if the environment says it all.
	Path    string
	Content []byte
	Environ []string // as os.Environ returns it
	Options Options
}

// ReadDocument reads the file at path, or none if path is empty. The error is an *Error.
func ReadDocument(path string, environ []string, o Options) (Document, error) {
	d := Document{Path: path, Environ: environ, Options: o}
	if path == "" {
		return d, nil
	}
	var err error
	if d.Content, err = readRegular(path); err != nil {
		if pathErr, ok := errors.AsType[*os.PathError](err); ok {
			err = pathErr.Err
		}
		text := "cannot be read: " + err.Error()
		if errors.Is(err, fs.ErrNotExist) && path == FileOf(environ) {
			text += "; OUTBOX_CONFIG names it: mount or write that file, or let OUTBOX_CONFIG be empty, and the other variables of " +
				"the environment say it all"
		}
		return Document{}, &Error{Mistakes: []Mistake{{File: path, Text: text}}}
	}
	return d, nil
}

// Load makes a Config of the document, as the function Load does.
func (d Document) Load() (Config, []string, error) {
	return Parse(d.Path, d.Content, d.Environ, d.Options)
}

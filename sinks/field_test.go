package sinks

import (
	"errors"
	"io/fs"
	"testing"
)

func TestFieldError(t *testing.T) {
	t.Parallel()
	err := errors.Join(FieldErrorf("topic", "%q is no topic", "a b"), FieldErrorf("tls.ca_file", "read: %w", fs.ErrNotExist))
	if want := "topic: \"a b\" is no topic\ntls.ca_file: read: file does not exist"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if wrong, ok := errors.AsType[*FieldError](err); !ok || wrong.Field != "topic" || wrong.Err.Error() != `"a b" is no topic` {
		t.Errorf("the first field is %+v", wrong)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
}

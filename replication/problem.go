package replication

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// The classes of what is wrong before a session can begin. None of it mends itself.
var (
	// ErrConfig: the configuration, or the server's, does not fit.
	ErrConfig = errors.New("invalid configuration")
	// ErrPrivilege: a role lacks a privilege.
	ErrPrivilege = errors.New("missing privilege")
	// ErrSlotLost: the slot was invalidated, or its history is not ours.
	ErrSlotLost = errors.New("slot lost")
	// ErrSlotMissing: the slot that the checkpoint speaks of is gone.
	ErrSlotMissing = errors.New("slot missing")
)

// Problem is one thing that is wrong, told with its remedy. Its class is found with errors.Is.
type Problem struct {
	Class error
	Text  string
}

func (p *Problem) Error() string { return p.Text }

func (p *Problem) Unwrap() error { return p.Class }

// ExitCode is that of a process which ends because of it.
func (p *Problem) ExitCode() int {
	switch {
	case errors.Is(p.Class, ErrSlotLost), errors.Is(p.Class, ErrSlotMissing):
		return int(exitcode.SlotLost)
	case errors.Is(p.Class, ErrPrivilege):
		return int(exitcode.Privilege)
	default:
		return int(exitcode.Config)
	}
}

func problem(class error, format string, args ...any) error {
	return &Problem{Class: class, Text: fmt.Sprintf(format, args...)}
}

// problems are gathered, so that a person mends them in one go.
type problems []*Problem

func (p *problems) add(class error, format string, args ...any) {
	*p = append(*p, &Problem{Class: class, Text: fmt.Sprintf(format, args...)})
}

// join is nil where there are none. The gravest comes first, because an error's first exit code is the process's.
func (p problems) join() error {
	sorted := slices.Clone(p)
	slices.SortStableFunc(sorted, func(a, b *Problem) int { return cmp.Compare(a.ExitCode(), b.ExitCode()) })
	var errs []error
	for _, e := range sorted {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

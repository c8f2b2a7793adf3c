// Package exitcode names the exit codes of the process and attaches them to errors. It does not end the process: main does,
// with the code of the error that the command returned.
package exitcode

import (
	"errors"
	"fmt"
)

// Code is the exit code of a process. Scripts and service managers depend on the numbers, so none of them ever changes.
type Code int

// The exit codes. Where sysexits.h has a code for the same thing, ours is the same: EX_UNAVAILABLE, EX_TEMPFAIL, EX_NOPERM, EX_CONFIG.
const (
	// OK: the command did what it was asked to do.
	OK Code = 0
	// Failure is every failure that has no code of its own.
	Failure Code = 1
	// Usage: the command line cannot be understood. 2 is what shells and the flag package use.
	Usage Code = 2
	// Unavailable: PostgreSQL cannot be reached. It may be back at the next start (EX_UNAVAILABLE).
	Unavailable Code = 69
	// SlotLost: the replication slot is lost, or is not ours, or cannot pass a row. sysexits.h has nothing like it; its 70
	// is EX_SOFTWARE.
	SlotLost Code = 70
	// Undecided: a comparison has found nothing wrong, and could not look at everything. A later try may (EX_TEMPFAIL).
	Undecided Code = 75
	// Privilege: a role lacks a privilege or may not log in (EX_NOPERM).
	Privilege Code = 77
	// Config: our configuration, or that of the server, the table or the publication, does not fit (EX_CONFIG).
	Config Code = 78
)

// Final reports whether only a person can mend what the code stands for: no further try of the same process can.
func (c Code) Final() bool {
	switch c {
	case SlotLost, Privilege, Config:
		return true
	}
	return false
}

// coded is an error that carries the exit code of a process which ends because of it.
type coded struct {
	code Code
	err  error
}

// With attaches a code to an error, whose text stays as it is.
func With(code Code, err error) error { return &coded{code, err} }

// Errorf is fmt.Errorf for an error that carries a code.
func Errorf(code Code, format string, args ...any) error {
	return &coded{code, fmt.Errorf(format, args...)}
}

func (e *coded) Error() string { return e.err.Error() }

func (e *coded) Unwrap() error { return e.err }

// ExitCode gives the code to those who cannot import this package, which are the services that embed the connector.
func (e *coded) ExitCode() int { return int(e.code) }

// Of finds the code of an error: OK if it is nil, the first code in its tree if it carries one, and Failure otherwise. Every
// error with a method ExitCode() int carries a code, also those of other packages and other types.
func Of(err error) Code {
	if err == nil {
		return OK
	}
	var carrier interface{ ExitCode() int }
	if errors.As(err, &carrier) {
		return Code(carrier.ExitCode())
	}
	return Failure
}

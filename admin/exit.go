package admin

import (
	"fmt"

	"github.com/pyairtable-compose/outbox-cdc/connector"
)

// exitError is an error with the exit code that it ends a command with.
type exitError struct {
	code int
	error
}

// ExitCode is the process's exit code.
func (e exitError) ExitCode() int { return e.code }

func (e exitError) Unwrap() error { return e.error }

// unreachable gives the failure to talk to PostgreSQL at all its exit code. It leaves others, and nil, as they are.
func unreachable(err error) error {
	if err != nil && connector.Unreachable(err) {
		return exitError{69, fmt.Errorf("PostgreSQL cannot be reached: %w", err)}
	}
	return err
}

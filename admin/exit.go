package admin

import (
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// unreachable gives the failure to talk to PostgreSQL at all its exit code. It leaves others, and nil, as they are.
func unreachable(err error) error {
	if err != nil && connector.Unreachable(err) {
		return exitcode.Errorf(exitcode.Unavailable, "PostgreSQL cannot be reached: %w", err)
	}
	return err
}

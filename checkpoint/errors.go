package checkpoint

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrFenced says that another session has taken the ledger over: its epoch is higher than ours. A Ledger returns it from
// Commit, and the recorder ends with it.
var ErrFenced = errors.New("another session has taken over")

// ServerStopping reports whether the server refuses all new connections because it is shutting down (SQLSTATE 57P03,
// cannot_connect_now). The end of a single connection says less: a person may have ended it, or idle_session_timeout.
// Whoever connects again learns which it was.
func ServerStopping(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && e.Code == "57P03"
}

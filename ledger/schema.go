// Package ledger says how the tables of the ledger are asked: in a session whose search_path finds no table and no function
// of anybody (Pin), by statements that name the ledger's schema (Schema.SQL).
//
// The reason is that others may create things in the ledger's schema: up to PostgreSQL 14, and in a database upgraded from
// it, everybody may do so in "public". PostgreSQL takes the function or operator that fits the types of the arguments best,
// of all schemas of the search_path. With the ledger's schema on the path, somebody else's "bigint % integer" or
// "format(text, name)" would run with the connector's rights.
package ledger

import (
	"strings"

	"github.com/jackc/pgx/v5"
)

// Schema is the name of the schema that the ledger is in, as it is, without quotes.
type Schema string

// SQL puts the quoted name of the schema in the place of "ledger" in ledger.outbox_… and ledger.event_outbox…:
//
//	Schema("cdc").SQL("select count(*) from ledger.outbox_parked")
//
// It gives the same text each time, so that a connection prepares a statement once. Where a statement is sent often, make its
// text once and keep it.
func (s Schema) SQL(text string) string {
	name := s.quoted()
	return strings.NewReplacer("ledger.outbox_", name+".outbox_", "ledger.event_outbox", name+".event_outbox").Replace(text)
}

// Name is the quoted name of a table or function with its schema: what text::regclass takes.
func (s Schema) Name(name string) string { return pgx.Identifier{string(s), name}.Sanitize() }

func (s Schema) quoted() string { return pgx.Identifier{string(s)}.Sanitize() }

// MakePartitions makes the log's partitions of today and the next days. It gives both arguments, of the exact types: a
// function of the same name and without arguments, which somebody else may have made, would fit a call without any better.
const MakePartitions = "select ledger.outbox_make_partitions(now(), 7)"

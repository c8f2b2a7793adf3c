package service

import (
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/config"
)

// Retention is the configured one as package cleanup takes it.
func Retention(cfg config.Config) cleanup.Retention {
	return cleanup.Retention{Outbox: kept(cfg.Retention.Outbox), Ledger: kept(cfg.Retention.Ledger)}
}

// kept returns how long rows are kept.
func kept(a config.Age) time.Duration {
	if a.Off() {
		return cleanup.Forever
	}
	return a.Duration()
}

// Deletes says in words, a sentence each, what a connector with this configuration deletes while it streams, and when, and which key
// decides that.
func Deletes(cfg config.Config) []string {
	outbox, ledger := cfg.Retention.Outbox, cfg.Retention.Ledger
	if outbox.Off() && ledger.Off() {
		return []string{"nothing is deleted: retention.outbox and retention.ledger are off"}
	}
	var texts []string
	switch {
	case outbox.Off():
		texts = append(texts, fmt.Sprintf("no rows of %s are deleted: retention.outbox is off", cfg.Source.Table))
	case outbox.Duration() == 0:
		texts = append(texts, fmt.Sprintf("rows of %s are deleted as soon as they are settled for every sink; retention.outbox: off keeps them", cfg.Source.Table))
	default:
		texts = append(texts, fmt.Sprintf("rows of %s that are settled for every sink are deleted when they are older than %s; retention.outbox: off keeps them",
			cfg.Source.Table, outbox))
	}
	switch {
	case ledger.Off():
		texts = append(texts, "no days of the delivery log are deleted: retention.ledger is off")
	default:
		texts = append(texts, fmt.Sprintf("days of the delivery log that are settled are deleted when they are older than %s; retention.ledger: off keeps them", ledger))
	}
	return texts
}

package connector

import "github.com/pyairtable-compose/outbox-cdc/sinks"

// storedText is the text of an error as the ledger stores it with a message: the error, and what the destination has answered. The
// answer goes nowhere else, because it may quote what was sent.
func storedText(err error) string {
	text := err.Error()
	if answer := sinks.Answer(err); answer != "" {
		text += "; it answered: " + answer
	}
	return text
}

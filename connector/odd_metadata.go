package connector

import (
	"bytes"
	"log/slog"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

// oddMetadata writes one log line about metadata that is no JSON object, such as an array or a text. The Connector owns it, and only
// the reader of the running session uses it. The zero value is ready.
type oddMetadata struct{ said bool }

// look looks at an event's metadata, and says in the log if they are no object, the first time that this happens. The event is
// delivered all the same: sinks take from such metadata nothing by name.
func (o *oddMetadata) look(e *outbox.Event, logger *slog.Logger) {
	if o.said || !isOdd(e.Metadata) {
		return
	}
	o.said = true
	logger.Warn("the metadata of an event are no JSON object: sinks find no content_type, traceparent or header in them. "+
		"Events like this are delivered all the same, and the log does not mention the next ones",
		"event_id", e.ID, "aggregate_type", e.AggregateType, "event_type", e.EventType)
}

// isOdd reports whether metadata are something else than a JSON object, null or nothing. The server has checked json and jsonb
// already, so the first character tells.
func isOdd(metadata []byte) bool {
	text := bytes.TrimSpace(metadata)
	return len(text) > 0 && text[0] != '{' && string(text) != "null"
}

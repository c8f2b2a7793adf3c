package ledger

import (
	"encoding/json"
	"fmt"
	"time"
)

// StoredEvent is an event without its payload, as the column event of outbox_parked keeps it.
type StoredEvent struct {
	ID            string     `json:"id,omitempty"`
	AggregateType string     `json:"aggregate_type,omitempty"`
	AggregateID   string     `json:"aggregate_id,omitempty"`
	EventType     string     `json:"event_type,omitempty"`
	EventVersion  int        `json:"event_version,omitempty"`
	ContentType   string     `json:"content_type,omitempty"` // of the payload, by the type of its column; empty for JSON
	CreatedAt     *time.Time `json:"created_at,omitempty"`
	CommittedAt   *time.Time `json:"committed_at,omitempty"` // when its transaction was committed
	MaxRetries    *int       `json:"max_retries,omitempty"`
	TenantID      string     `json:"tenant_id,omitempty"`
	CorrelationID string     `json:"correlation_id,omitempty"`
	CausationID   string     `json:"causation_id,omitempty"`
	// MetadataText is metadata that is no JSON: a mapped text column may hold anything.
	MetadataText *string `json:"metadata_text,omitempty"`
	// Metadata comes last and is written as it is: encoding/json would take its spaces away.
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

// Encode returns the event as JSON, for the column. Metadata may be anything; if it is no JSON, it is stored as MetadataText.
// Times that JSON cannot hold are left out.
func (s StoredEvent) Encode() []byte {
	s.CreatedAt, s.CommittedAt = storable(s.CreatedAt), storable(s.CommittedAt)
	metadata := s.Metadata
	s.Metadata = nil
	raw := len(metadata) > 0 && json.Valid(metadata) && !padded(metadata)
	if len(metadata) > 0 && !raw {
		text := string(metadata)
		s.MetadataText = &text
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic("an event's columns are always JSON: " + err.Error())
	}
	if !raw {
		return b
	}
	b = b[:len(b)-1]
	if len(b) > 1 {
		b = append(b, ',')
	}
	b = append(b, `"metadata":`...)
	return append(append(b, metadata...), '}')
}

// padded reports whether JSON has spaces around it, which a field of a JSON object does not keep.
func padded(b []byte) bool {
	return b[0] <= ' ' || b[len(b)-1] <= ' '
}

// storable returns nil for a time that JSON cannot hold.
func storable(t *time.Time) *time.Time {
	if t == nil || t.IsZero() || t.Year() <= 0 || t.Year() >= 10000 {
		return nil
	}
	return t
}

// decodeEvent returns the event that Encode has written.
func decodeEvent(stored []byte) (s StoredEvent, err error) {
	if err := json.Unmarshal(stored, &s); err != nil {
		return s, fmt.Errorf("decode the event: %w", err)
	}
	return s, nil
}

// metadataSize is the size of the metadata in bytes.
func (s *StoredEvent) metadataSize() int {
	if s.MetadataText != nil {
		return len(*s.MetadataText)
	}
	return len(s.Metadata)
}

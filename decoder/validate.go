package decoder

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// required are the fields that must not be NULL where the table has them.
var required = [...]field{id, aggregateType, aggregateID, eventType}

// expendable are the fields in the order in which they are dropped from a row that is too large.
var expendable = [...]field{payload, metadata, causationID, correlationID, tenantID, eventType, aggregateID, aggregateType, id}

// validate says why a row is no valid event; nil if it is one. It takes from v what cannot be kept, and gives the size
// of the rest.
func (d *Decoder) validate(v *values) (int, error) {
	var invalid []string
	for _, f := range required {
		if v[f] == nil && d.outbox.column[f] >= 0 {
			invalid = append(invalid, needs[f].name+" is null")
		}
	}
	if d.outbox.metadataText && !json.Valid(v[metadata]) {
		if len(v[metadata]) > 0 {
			invalid = append(invalid, "metadata is not JSON")
		}
		v[metadata] = nil
	}
	size := d.size(v)
	if size > d.maxEventBytes {
		invalid = append(invalid, fmt.Sprintf("the event takes %d bytes, more than the %d of max_event_bytes", size, d.maxEventBytes))
		for _, f := range expendable {
			if size > d.maxEventBytes {
				v[f] = nil
				size = d.size(v)
			}
		}
	}
	if invalid == nil {
		return size, nil
	}
	return size, errors.New(strings.Join(invalid, "; "))
}

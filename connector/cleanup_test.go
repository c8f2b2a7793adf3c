package connector

import (
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
)

// keepsAll is the retention of connectors that delete nothing.
var keepsAll = cleanup.Retention{Outbox: cleanup.Forever, Ledger: cleanup.Forever}

package provision

import (
	"context"
	"fmt"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// wholeEncodings are the encodings in which each code is a character. PostgreSQL can convert every text of such a database to
// UTF8. A test compares the list with what PostgreSQL itself can convert.
var wholeEncodings = []string{
	"UTF8", "LATIN1", "LATIN2", "LATIN4", "LATIN5", "LATIN6", "LATIN7", "LATIN8", "LATIN9", "LATIN10", "ISO_8859_5", "KOI8R", "KOI8U", "WIN866", "WIN1256",
}

// encodingWarnings warns if the database has an encoding in which a row may hold bytes that can never be sent. It is no reason
// to refuse, because such a row may never come.
func encodingWarnings(ctx context.Context, db ledger.Querier) ([]string, error) {
	var encoding string
	if err := db.QueryRow(ctx, "select current_setting('server_encoding')").Scan(&encoding); err != nil {
		return nil, fmt.Errorf("ask for the encoding: %w", err)
	}
	if slices.Contains(wholeEncodings, encoding) {
		return nil, nil
	}
	return []string{fmt.Sprintf("the database has the encoding %s, in which a text may hold bytes that cannot be converted to UTF8: such a row stops "+
		"the stream for good; restore a dump of it into a database of encoding UTF8: docs/encodings.md", encoding)}, nil
}

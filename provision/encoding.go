package provision

import (
	"context"
	"fmt"
	"slices"
)

// wholeEncodings have a character for each of their codes, so that PostgreSQL can convert every row to UTF8. A test asks it.
var wholeEncodings = []string{
	"UTF8", "LATIN1", "LATIN2", "LATIN4", "LATIN5", "LATIN6", "LATIN7", "LATIN8", "LATIN9", "LATIN10", "ISO_8859_5", "KOI8R", "KOI8U", "WIN866", "WIN1256",
}

// encodingWarnings warns of an encoding with rows that can never be sent. Such rows may never come, so it is no reason to refuse.
func encodingWarnings(ctx context.Context, db SQL) ([]string, error) {
	var encoding string
	if err := db.QueryRow(ctx, "select current_setting('server_encoding')").Scan(&encoding); err != nil {
		return nil, fmt.Errorf("ask for the encoding: %w", err)
	}
	if slices.Contains(wholeEncodings, encoding) {
		return nil, nil
	}
	return []string{fmt.Sprintf("the database has the encoding %s, in which a text may hold bytes that cannot be converted to UTF8: such a row stops "+
		"the stream for good; restore a dump of it into a database of encoding UTF8: docs/operations.md#encodings", encoding)}, nil
}

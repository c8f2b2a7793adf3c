package provision

import (
	"cmp"
	"errors"
	"slices"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// problems gathers mistakes that only a person can mend, so that a person can mend them in one go.
type problems []error

func (p *problems) add(code exitcode.Code, format string, args ...any) {
	*p = append(*p, exitcode.Errorf(code, format, args...))
}

// join returns nil if there are none. The error with the lowest exit code comes first: a lost slot before a missing privilege,
// and that before an invalid configuration. The first code is the one that the process ends with.
func (p problems) join() error {
	sorted := slices.Clone(p)
	slices.SortStableFunc(sorted, func(a, b error) int { return cmp.Compare(exitcode.Of(a), exitcode.Of(b)) })
	return errors.Join(sorted...)
}

// Package testrand gives tests random numbers that can be drawn again.
package testrand

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// seedVariable holds the seed of a test that failed, to run it again.
const seedVariable = "OUTBOX_TEST_SEED"

// New returns a source of random numbers with a new seed, or with the one in OUTBOX_TEST_SEED. If the test fails, its log says how
// to set that. For one goroutine at a time.
func New(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("%s=%d draws the same numbers", seedVariable, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

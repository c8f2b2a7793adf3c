package main

import (
	"os"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// Command connector is "outbox-cdc run" with a CPU profile, which the product has no option for.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/service"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run takes the arguments of outbox-cdc, the command included.
func run(args []string) (err error) {
	if len(args) == 0 || args[0] != "run" {
		return errors.New("the only command is run")
	}
	flags := flag.NewFlagSet("connector run", flag.ContinueOnError)
	path := flags.String("config", "", "configuration file")
	profile := flags.String("profile", "", "where to write the CPU profile")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	cfg, _, err := config.Load(*path, os.Environ())
	if err != nil {
		return err
	}
	file, err := os.Create(*profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return service.Run(ctx, cfg, service.RunOptions{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

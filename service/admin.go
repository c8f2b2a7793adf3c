package service

import (
	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
)

// AdminConfig returns what the functions of package admin need to work on the ledger of the connector that cfg describes.
func AdminConfig(cfg config.Config) admin.Config {
	c := admin.Config{
		Name: cfg.Name, DSN: string(cfg.Source.DSN), Source: source(cfg), DeadBlocks: cfg.Delivery.OnDeadLetter == config.DeadBlock,
	}
	for _, s := range cfg.Sinks {
		if !s.Abandoned {
			c.Sinks = append(c.Sinks, s.Name)
		}
		if s.Composite != nil {
			c.Composites = append(c.Composites, admin.Composite{
				Name: s.Name, Members: s.Composite.Members, OneSink: s.Composite.Strategy == config.StrategyAny,
			})
		}
	}
	return c
}

// StatusConfig returns what admin.ReadStatus needs to say how the connector does that cfg describes.
func StatusConfig(cfg config.Config) admin.StatusConfig {
	return admin.StatusConfig{
		Config: AdminConfig(cfg), DSNPlace: cfg.Source.DSNPlace, MaxInFlight: cfg.Delivery.MaxInFlight, Listen: cfg.HTTP.Listen,
		Retention: Retention(cfg),
	}
}

// Routing returns the sinks and routes of cfg, by which package admin says where an event would go. It connects to nothing.
func Routing(cfg config.Config) (admin.Routing, error) {
	sinks, members, err := buildSinksAndMembers(cfg, BuildOptions{})
	if err != nil {
		return admin.Routing{}, err
	}
	urls := map[string]config.URL{}
	for _, s := range cfg.Sinks {
		if s.Webhook != nil {
			urls[s.Name] = s.Webhook.URL
		}
	}
	routes, err := buildRoutes(cfg)
	return admin.Routing{Sinks: sinks, Routes: routes, Members: members, URLs: urls}, err
}

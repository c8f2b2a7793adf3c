package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

// panel is what panels of all kinds have.
type panel struct {
	title string
	// shows says what is seen, good which values are good, and todo what to do about others. They make the description.
	shows, good, todo string
	// page is the page of docs, with an anchor, that says more.
	page  string
	unit  string
	width uint32
}

const panelHeight = 8

func (p panel) description() string {
	return p.shows + "\n\n**Good:** " + p.good + "\n\n**Otherwise:** " + p.todo
}

func (p panel) links() []cog.Builder[dashboard.DashboardLink] {
	return []cog.Builder[dashboard.DashboardLink]{pageLink("What to do", p.page, "The page about this")}
}

// refID names the queries of a panel: A, B, C.
func refID(i int) string { return string(rune('A' + i)) }

func overTime(queries []query) (targets []cog.Builder[variants.Dataquery]) {
	for i, q := range queries {
		targets = append(targets, prometheus.NewDataqueryBuilder().RefId(refID(i)).Datasource(datasource).
			Expr(q.expr).LegendFormat(q.legend).Range())
	}
	return targets
}

func now(queries []query, format prometheus.PromQueryFormat) (targets []cog.Builder[variants.Dataquery]) {
	for i, q := range queries {
		targets = append(targets, prometheus.NewDataqueryBuilder().RefId(refID(i)).Datasource(datasource).
			Expr(q.expr).LegendFormat(q.legend).Instant().Format(format))
	}
	return targets
}

// lines is a graph over time.
func lines(p panel, queries ...query) *timeseries.PanelBuilder {
	return timeseries.NewPanelBuilder().Title(p.title).Description(p.description()).Links(p.links()).
		Datasource(datasource).Unit(p.unit).Span(p.width).Height(panelHeight).
		Targets(overTime(queries)).
		Min(0).
		LineWidth(1).
		FillOpacity(8).
		ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).
			Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
}

// logarithmic makes a graph that shows milliseconds and minutes at once. It has no 0.
func logarithmic(b *timeseries.PanelBuilder) cog.Builder[dashboard.Panel] {
	return withoutMin{b.ScaleDistribution(common.NewScaleDistributionConfigBuilder().Type(common.ScaleDistributionLog).Log(10))}
}

type withoutMin struct{ cog.Builder[dashboard.Panel] }

func (b withoutMin) Build() (dashboard.Panel, error) {
	p, err := b.Builder.Build()
	if err == nil {
		p.FieldConfig.Defaults.Min = nil
	}
	return p, err
}

// number is a few values of now, large. It asks for now only: over a time Grafana would go on showing the last value of a series that is gone.
func number(p panel, queries ...query) *stat.PanelBuilder {
	return stat.NewPanelBuilder().Title(p.title).Description(p.description()).Links(p.links()).
		Datasource(datasource).Unit(p.unit).Span(p.width).Height(panelHeight).
		Targets(now(queries, prometheus.PromQueryFormatTimeSeries)).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
		ColorMode(common.BigValueColorModeValue).
		GraphMode(common.BigValueGraphModeNone).
		TextMode(common.BigValueTextModeValueAndName).
		NoValue("unknown")
}

// states is a band over time for each series, whose colour is its value.
func states(p panel, meanings []dashboard.ValueMapping, queries ...query) *statetimeline.PanelBuilder {
	return statetimeline.NewPanelBuilder().Title(p.title).Description(p.description()).Links(p.links()).
		Datasource(datasource).Unit(p.unit).Span(p.width).Height(panelHeight).
		Targets(overTime(queries)).
		Mappings(meanings).
		MergeValues(true).
		ShowValue(common.VisibilityModeAuto).
		RowHeight(.8).
		FillOpacity(80).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeSingle).Sort(common.SortOrderNone)).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).
			Placement(common.LegendPlacementBottom).ShowLegend(true))
}

// durations is a heatmap of a histogram of seconds.
func durations(p panel, buckets string) *heatmap.PanelBuilder {
	return heatmap.NewPanelBuilder().Title(p.title).Description(p.description()).Links(p.links()).
		Datasource(datasource).Unit(units.Short).Span(p.width).Height(panelHeight).
		Targets([]cog.Builder[variants.Dataquery]{prometheus.NewDataqueryBuilder().RefId(refID(0)).Datasource(datasource).
			Expr(buckets).LegendFormat("{{le}}").Range().Format(prometheus.PromQueryFormatHeatmap)}).
		Calculate(false).
		YAxis(heatmap.NewYAxisConfigBuilder().Unit(p.unit)).
		Color(heatmap.NewHeatmapColorOptionsBuilder().Mode(heatmap.HeatmapColorModeScheme).Scheme("Oranges").Steps(64).
			Scale(heatmap.HeatmapColorScaleExponential).Exponent(.5).Fill("dark-orange")).
		CellValues(heatmap.NewCellValuesBuilder().Unit("cps"))
}

// column is a column of a table: the value of a query, or the value of a label of it. Without a query it is a label of the one before.
type column struct {
	query
	unit string
	// label is shown instead of the value.
	label string
	// colors are the thresholds of its cells.
	colors []dashboard.Threshold
}

// rows is a table with one row for each value of a label, by which the queries are joined.
func rows(p panel, key string, columns ...column) *table.PanelBuilder {
	keep := []string{key}
	exclude, rename, order := map[string]bool{}, map[string]string{}, map[string]int{key: 0}
	var queries []query
	b := table.NewPanelBuilder().Title(p.title).Description(p.description()).Links(p.links()).
		Datasource(datasource).Unit(p.unit).Span(p.width).Height(panelHeight)
	for i, c := range columns {
		if c.expr != "" {
			queries = append(queries, c.query)
		}
		value := "Value #" + refID(i)
		shown := value
		keep = append(keep, value)
		if c.label != "" {
			shown = c.label
			keep = append(keep, c.label)
			exclude[value] = true
		}
		rename[shown], order[shown] = c.legend, i+1
		var properties []dashboard.DynamicConfigValue
		if c.unit != "" {
			properties = append(properties, dashboard.DynamicConfigValue{Id: "unit", Value: c.unit})
		}
		if c.colors != nil {
			properties = append(properties,
				dashboard.DynamicConfigValue{Id: "thresholds", Value: dashboard.ThresholdsConfig{
					Mode: dashboard.ThresholdsModeAbsolute, Steps: c.colors,
				}},
				dashboard.DynamicConfigValue{Id: "custom.cellOptions", Value: map[string]string{"type": "color-text"}})
		}
		if properties != nil {
			b.OverrideByName(c.legend, properties)
		}
	}
	b.Targets(now(queries, prometheus.PromQueryFormatTable)).
		WithTransformation(dashboard.DataTransformerConfig{Id: "filterFieldsByName", Options: map[string]any{
			"include": map[string]string{"pattern": "^(" + strings.Join(keep, "|") + ")$"},
		}})
	if len(queries) > 1 {
		b.WithTransformation(dashboard.DataTransformerConfig{Id: "joinByField", Options: map[string]string{"byField": key, "mode": "outer"}})
	} else { // its value is not numbered then
		exclude["Value"] = true
	}
	return b.WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{
		"excludeByName": exclude, "renameByName": rename, "indexByName": order,
	}})
}

// meaning is what a value is called, and its colour.
type meaning struct {
	value, text, color string
}

func meanings(all ...meaning) []dashboard.ValueMapping {
	options := map[string]dashboard.ValueMappingResult{}
	for i, m := range all {
		options[m.value] = dashboard.ValueMappingResult{Text: &m.text, Color: &m.color, Index: cog.ToPtr(int32(i))}
	}
	return []dashboard.ValueMapping{{ValueMap: &dashboard.ValueMap{Type: dashboard.MappingTypeValueToText, Options: options}}}
}

// state is a value of a label, of which one is true at a time, and its colour.
type state struct {
	name, color string
}

// numbered selects a metric that has one series a state, and makes the number of the state of what is 1: a band over time needs numbers.
func numbered(selection func(string, ...string) string, metric, label string, all []state) (expr string, texts []dashboard.ValueMapping) {
	var parts []string
	var named []meaning
	for i, s := range all {
		parts = append(parts, fmt.Sprintf("%d * (%s == 1)", i, selection(metric, fmt.Sprintf("%s=%q", label, s.name))))
		named = append(named, meaning{strconv.Itoa(i), strings.ReplaceAll(s.name, "_", " "), s.color})
	}
	return "(" + strings.Join(parts, " or ") + ")", meanings(named...)
}

// step is from which value on a colour holds.
type step struct {
	from  float64
	color string
}

// thresholds begin with the colour of all values below the first step.
func thresholds(color string, steps ...step) []dashboard.Threshold {
	all := []dashboard.Threshold{{Color: color}}
	for _, s := range steps {
		all = append(all, dashboard.Threshold{Value: &s.from, Color: s.color})
	}
	return all
}

func absolute(all []dashboard.Threshold) cog.Builder[dashboard.ThresholdsConfig] {
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(all)
}

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

const (
	// prefix begins the names of the metrics. "outbox-cdc monitoring dashboard --prefix" puts another one in its place, so it stands in no
	// text for any other reason.
	prefix = "pyairtable_outbox_"
	docs   = "https://github.com/pyairtable-compose/outbox-cdc/blob/main/docs/"
)

// row is panels that answer one question. Their widths fill lines of 24.
type row struct {
	question string
	panels   []cog.Builder[dashboard.Panel]
}

var datasource = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}

func newDashboard() (dashboard.Dashboard, error) {
	b := dashboard.NewDashboardBuilder("Outbox").
		Uid("outbox-cdc").
		Description("How an outbox does that outbox-cdc delivers: from the top down, whether it is well, how far it is behind, which sink, and why.").
		Tags([]string{"outbox", "outbox-cdc"}).
		Editable().
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Time("now-3h", "now").
		Timezone("browser").
		Refresh("30s").
		Link(pageLink("Runbook", "operations.md", "What to do about each alert and symptom")).
		Link(pageLink("Metrics", "metrics.md", "What each metric is, and which values are worth a look"))
	for _, v := range variables() {
		b.WithVariable(v)
	}
	for _, a := range annotations() {
		b.Annotation(a)
	}
	for _, r := range []row{healthRow(), behindRow(), sinksRow(), whyRow(), postgresRow(), processRow()} {
		b.WithRow(dashboard.NewRowBuilder(r.question))
		for _, p := range r.panels {
			b.WithPanel(p)
		}
	}
	d, err := b.Build()
	id := uint32(0)
	for _, p := range d.Panels {
		id++
		if p.Panel != nil {
			p.Panel.Id = cog.ToPtr(id)
			showLinks(p.Panel.Links)
		} else {
			p.RowPanel.Id = id
		}
	}
	showLinks(d.Links)
	for i := range d.Annotations.List {
		d.Annotations.List[i].Placement = nil
	}
	return d, err
}

// showLinks puts links where people see them: the SDK puts them, and what switches annotations on and off, into a menu.
func showLinks(links []dashboard.DashboardLink) {
	for i := range links {
		links[i].Placement = nil
	}
}

// variables are the choices above the dashboard. One outbox is one job, so one job is shown at a time.
func variables() []cog.Builder[dashboard.VariableModel] {
	choice := func(name, label, values string) *dashboard.QueryVariableBuilder {
		return dashboard.NewQueryVariableBuilder(name).
			Label(label).
			Datasource(datasource).
			Query(dashboard.StringOrMap{String: &values}).
			Definition(values).
			Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
			Sort(dashboard.VariableSortAlphabeticalAsc)
	}
	several := func(v *dashboard.QueryVariableBuilder) *dashboard.QueryVariableBuilder {
		all := []string{"All"}
		return v.Multi(true).IncludeAll(true).AllValue(".*").Current(dashboard.VariableOption{
			Selected: cog.ToPtr(true),
			Text:     dashboard.StringOrArrayOfString{ArrayOfString: all},
			Value:    dashboard.StringOrArrayOfString{ArrayOfString: []string{"$__all"}},
		})
	}
	return []cog.Builder[dashboard.VariableModel]{
		dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"),
		choice("job", "Job", "label_values("+prefix+"build_info, job)"),
		several(choice("instance", "Instance", "label_values("+prefix+`build_info{job="$job"}, instance)`)),
		several(choice("sink", "Sink", "label_values("+prefix+`circuit_breaker_state{job="$job"}, sink)`)),
	}
}

// annotations are the events that explain a step in a graph.
func annotations() []cog.Builder[dashboard.AnnotationQuery] {
	event := func(name, color, expr, title string) cog.Builder[dashboard.AnnotationQuery] {
		return dashboard.NewAnnotationQueryBuilder().
			Name(name).
			Datasource(datasource).
			Enable(true).
			IconColor(color).
			Expr(expr).
			Step("30s").
			TitleFormat(title).
			TagKeys("instance")
	}
	return []cog.Builder[dashboard.AnnotationQuery]{
		event("Sessions", "blue", "changes("+ofInstances("sessions_total")+"[1m]) > 0", "{{instance}} began a session"),
		event("Takeovers", "orange", ofInstances("leader")+" == 1 unless "+ofInstances("leader")+" offset 1m == 1", "{{instance}} leads"),
		event("Versions", "purple", ofInstances("build_info")+" unless on (job, version, commit) "+
			ofInstances("build_info")+" offset 1m", "{{instance}} runs version {{version}}"),
	}
}

func pageLink(title, page, tooltip string) cog.Builder[dashboard.DashboardLink] {
	return dashboard.NewDashboardLinkBuilder(title).
		Type(dashboard.DashboardLinkTypeLink).
		Icon("doc").
		Tooltip(tooltip).
		Url(docs + page).
		TargetBlank(true)
}

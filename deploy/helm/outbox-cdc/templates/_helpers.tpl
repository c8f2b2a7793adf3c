{{/* The prefix of the names of all objects. A label has at most 63 characters, and 21 of these are for a hyphen and the outbox's name. */}}
{{- define "outbox-cdc.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 42 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 42 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "outbox-cdc.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The labels that select the pods of one outbox. It takes a dict of root and outbox. */}}
{{- define "outbox-cdc.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .outbox.name }}
{{- end -}}

{{/* The name of the objects of one outbox. It takes a dict of root and outbox. */}}
{{- define "outbox-cdc.outboxName" -}}
{{- printf "%s-%s" (include "outbox-cdc.fullname" .root) .outbox.name -}}
{{- end -}}

{{- define "outbox-cdc.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "outbox-cdc.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "outbox-cdc.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The path at which a key of a secret is mounted. It takes a list of the secret's name and the key. */}}
{{- define "outbox-cdc.secretPath" -}}
{{- printf "/run/secrets/outbox-cdc/%s/%s" (index . 0) (index . 1) -}}
{{- end -}}

{{/*
The configuration of one outbox: what the values have, with the connection strings of the existing secret. It takes a dict of root and
outbox. The connection strings are read from mounted files, so that a changed password is used without a new start.
*/}}
{{- define "outbox-cdc.config" -}}
{{- $c := deepCopy .outbox.config -}}
{{- $source := default dict $c.source -}}
{{- with .outbox.database -}}
{{- if hasKey $source "dsn" -}}
{{- fail (printf "outboxes: %s has both database.existingSecret and config.source.dsn; write one of them" $.outbox.name) -}}
{{- end -}}
{{- $_ := set $source "dsn" (printf "${file:%s}" (include "outbox-cdc.secretPath" (list .existingSecret (default "dsn" .key)))) -}}
{{- with .replicationKey -}}
{{- $_ := set $source "replication_dsn" (printf "${file:%s}" (include "outbox-cdc.secretPath" (list $.outbox.database.existingSecret .))) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $c "source" $source -}}
{{- toYaml $c -}}
{{- end -}}

{{/* The names of the secrets that are mounted, as a JSON list. It takes a dict of root and outbox. */}}
{{- define "outbox-cdc.secretNames" -}}
{{- $names := list -}}
{{- with .outbox.database -}}{{- $names = append $names .existingSecret -}}{{- end -}}
{{- $names = concat $names (default list .outbox.secretFiles) | uniq -}}
{{- toJson $names -}}
{{- end -}}

{{/* The seconds of a duration such as 25s, 1m30s or 500ms, rounded up. */}}
{{- define "outbox-cdc.seconds" -}}
{{- if not (regexMatch "^([0-9.]+(h|m|s|ms))+$" .) -}}
{{- fail (printf "the duration %q is not one that this chart can read; set terminationGracePeriodSeconds" .) -}}
{{- end -}}
{{- $ms := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ms|h|m|s)" . -1 -}}
{{- $n := regexFind "[0-9.]+" . | float64 -}}
{{- $unit := regexFind "[a-z]+" . -}}
{{- $ms = addf $ms (mulf $n (get (dict "h" 3600000.0 "m" 60000.0 "s" 1000.0 "ms" 1.0) $unit)) -}}
{{- end -}}
{{- divf $ms 1000.0 | ceil | int -}}
{{- end -}}

{{- define "outbox-cdc.gracePeriod" -}}
{{- if .root.Values.terminationGracePeriodSeconds -}}
{{- .root.Values.terminationGracePeriodSeconds -}}
{{- else -}}
{{- $delivery := default dict .outbox.config.delivery -}}
{{- $drain := default "25s" $delivery.drain_timeout | toString -}}
{{- add 15 (include "outbox-cdc.seconds" $drain | int) -}}
{{- end -}}
{{- end -}}

{{/* GOMEMLIMIT: 90 % of a limit of memory. It takes a dict of root and resources. */}}
{{- define "outbox-cdc.goMemLimit" -}}
{{- $limit := dig "limits" "memory" "" .resources | toString -}}
{{- if .root.Values.goMemLimit -}}
{{- .root.Values.goMemLimit -}}
{{- else if regexMatch "^[0-9.]+(Ki|Mi|Gi|k|M|G)$" $limit -}}
{{- $bytes := mulf (regexFind "[0-9.]+" $limit | float64) (get (dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "k" 1000.0 "M" 1000000.0 "G" 1000000000.0) (regexFind "[A-Za-z]+" $limit)) -}}
{{- printf "%dMiB" (divf (mulf $bytes 0.9) 1048576.0 | floor | int) -}}
{{- else if $limit -}}
{{- fail (printf "the limit of memory %q is not one that this chart can read; write it in Mi or Gi, or set goMemLimit" $limit) -}}
{{- else -}}
off
{{- end -}}
{{- end -}}

{{/* Fails if a configuration, which will be in a ConfigMap, holds a secret. It takes an outbox. */}}
{{- define "outbox-cdc.checkSecrets" -}}
{{- $found := "" -}}
{{- $text := toYaml .config -}}
{{- if or (regexMatch "://[^/@:\\s]*:[^@/\\s$]+@" $text) (regexMatch "password=[^$\\s]" $text) -}}
{{- $found = "a connection string" -}}
{{- end -}}
{{- range $i, $sink := .config.sinks -}}
{{- $values := dict "password" $sink.password "sasl.password" (dig "sasl" "password" "" $sink) -}}
{{- if kindIs "slice" $sink.secret -}}
{{- range $sink.secret -}}{{- $_ := set $values "secret" (ternary . (get $values "secret") (not (contains "${" (toString .)))) -}}{{- end -}}
{{- else -}}
{{- $_ := set $values "secret" $sink.secret -}}
{{- end -}}
{{- range $header, $value := $sink.headers -}}{{- $_ := set $values (printf "headers.%s" $header) $value -}}{{- end -}}
{{- range $key, $value := $values -}}
{{- if and $value (not (contains "${" (toString $value))) -}}{{- $found = printf "sinks[%d].%s" $i $key -}}{{- end -}}
{{- end -}}
{{- if and (eq (toString $sink.type) "event_bus") (regexMatch "://[^/@:\\s$]+@" (toString $sink.url)) -}}{{- $found = printf "sinks[%d].url" $i -}}{{- end -}}
{{- end -}}
{{- range $header, $value := dig "tracing" "headers" dict .config -}}
{{- if not (contains "${" (toString $value)) -}}{{- $found = printf "tracing.headers.%s" $header -}}{{- end -}}
{{- end -}}
{{- if $found -}}
{{- fail (printf "outboxes: the config of %s holds a password or another secret (%s), and a ConfigMap is no place for one; write ${file:…} or ${VAR} in its place, from an existing secret" .name $found) -}}
{{- end -}}
{{- end -}}

{{/* What is wrong with the values as a whole. values.schema.json finds what is wrong with single ones. */}}
{{- define "outbox-cdc.check" -}}
{{- if not .Values.outboxes -}}
{{- fail "outboxes is empty; name at least one, see README.md: outboxes: [{name: shop, database: {existingSecret: shop-outbox}, config: {sinks: [...]}}]" -}}
{{- end -}}
{{- with .Values.podMonitor -}}
{{- if gt (include "outbox-cdc.seconds" .scrapeTimeout | int) (include "outbox-cdc.seconds" .interval | int) -}}
{{- fail (printf "podMonitor.scrapeTimeout (%s) is longer than podMonitor.interval (%s), and the operator of Prometheus would reject the PodMonitor; set both" .scrapeTimeout .interval) -}}
{{- end -}}
{{- end -}}
{{- $names := dict -}}
{{- $slots := dict -}}
{{- range .Values.outboxes -}}
{{- if hasKey $names .name -}}
{{- fail (printf "outboxes: two of them are called %s; each needs a name of its own" .name) -}}
{{- end -}}
{{- $_ := set $names .name true -}}
{{- if regexMatch "(^|-)(init|validate|dashboard)$" .name -}}
{{- fail (printf "outboxes: %s cannot be a name, because the chart gives objects of its own such names" .name) -}}
{{- end -}}
{{- include "outbox-cdc.checkSecrets" . -}}
{{- if hasKey (default dict .config.http) "listen" -}}
{{- fail (printf "outboxes: %s has a config.http.listen, which the chart sets itself, since probes and metrics depend on it; leave it out" .name) -}}
{{- end -}}
{{- if and $.Values.podMonitor.enabled (eq (toString (dig "metrics" "enabled" true .config)) "false") -}}
{{- fail (printf "outboxes: %s has metrics.enabled: false, so podMonitor would find nothing; leave out one of them" .name) -}}
{{- end -}}
{{- $source := default dict .config.source -}}
{{- with .database -}}
{{- $slot := printf "%s/%s %s" .existingSecret (default "dsn" .key) (default "outbox_cdc" $source.slot) -}}
{{- if hasKey $slots $slot -}}
{{- fail (printf "outboxes: two of them use the same secret and the same slot, so only one would stream; set config.source.slot, and config.source.publication") -}}
{{- end -}}
{{- $_ := set $slots $slot true -}}
{{- end -}}
{{- $metrics := default dict .config.metrics -}}
{{- if and (or $.Values.prometheusRule.enabled $.Values.dashboard.enabled) (hasKey $metrics "prefix") (ne $metrics.prefix "pyairtable_outbox_") -}}
{{- fail (printf "outboxes: %s has a metrics.prefix of its own, which the chart's alerts and dashboard do not know; disable prometheusRule and dashboard, and make them with \"outbox-cdc monitoring alerts --prefix %s\" and \"outbox-cdc monitoring dashboard --prefix %s\"" .name $metrics.prefix $metrics.prefix) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The security of a pod, and of its container. */}}
{{- define "outbox-cdc.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "outbox-cdc.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Variables, mounts and volumes of the containers of one outbox. They take a dict of root, outbox, resources and configMap. */}}
{{- define "outbox-cdc.env" -}}
- name: GOMEMLIMIT
  value: {{ include "outbox-cdc.goMemLimit" . | quote }}
{{- with .outbox.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-cdc.mounts" -}}
- name: config
  mountPath: /etc/outbox-cdc
  readOnly: true
{{- range include "outbox-cdc.secretNames" . | fromJsonArray }}
- name: {{ printf "secret-%s" (sha256sum . | trunc 10) }}
  mountPath: {{ printf "/run/secrets/outbox-cdc/%s" . }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "outbox-cdc.volumes" -}}
- name: config
  configMap:
    name: {{ .configMap }}
{{- range include "outbox-cdc.secretNames" . | fromJsonArray }}
- name: {{ printf "secret-%s" (sha256sum . | trunc 10) }}
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

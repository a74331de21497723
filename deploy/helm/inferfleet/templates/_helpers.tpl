{{/* Labels of every object. A pool's objects have inferfleet/pool too. */}}
{{- define "inferfleet.labels" -}}
app.kubernetes.io/name: inferfleet
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "inferfleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "inferfleet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* One variable with a URL. Called with (list . NAME KEY). */}}
{{- define "inferfleet.url" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
{{- if $root.Values.secretFiles }}
  value: file:///etc/inferfleet/connections/{{ index . 2 }}
{{- else }}
  valueFrom:
    secretKeyRef: {name: inferfleet-connections, key: {{ index . 2 }}}
{{- end }}
{{- end }}

{{/* What secretFiles and tls mount into every pod. */}}
{{- define "inferfleet.secretMounts" -}}
{{- if .Values.secretFiles }}
- {name: connections, mountPath: /etc/inferfleet/connections, readOnly: true}
{{- end }}
{{- if .Values.tls }}
- {name: tls, mountPath: /etc/inferfleet/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "inferfleet.secretVolumes" -}}
{{- if .Values.secretFiles }}
- name: connections
  secret: {secretName: inferfleet-connections, defaultMode: 0440}
{{- end }}
{{- if .Values.tls }}
- name: tls
  secret: {secretName: inferfleet-tls, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* Refuses a grace period that ends before the drain has. Called with (dict "root" . "place" PLACE "of" VALUES "env" ENV "rest" SECONDS). */}}
{{- define "inferfleet.grace" -}}
{{- $drain := get .env "INFERFLEET_DRAIN_TIMEOUT_S" | default (get .root.Values.fleet "INFERFLEET_DRAIN_TIMEOUT_S") | default "30" }}
{{- $least := addf (float64 $drain) .rest }}
{{- if le (float64 .of.terminationGracePeriodSeconds) $least }}
{{- fail (printf "%s.terminationGracePeriodSeconds: %v is not more than %v, the drain's timeout (INFERFLEET_DRAIN_TIMEOUT_S) + %v s, so Kubernetes would kill what still drains" .place .of.terminationGracePeriodSeconds $least .rest) }}
{{- end }}
{{- end }}

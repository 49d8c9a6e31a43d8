package main

import "html/template"

// What documents and their tests look for in the pages: the title; for each star `glyphicon glyphicon-star`, in text-black-500 or
// text-red-500; `Error fetching product details` and `… reviews`; `Reviews served by:` and the pod.

var indexTemplate = template.Must(template.New("index").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Simple Bookstore App</title>
<link rel="stylesheet" href="static/style.css">
</head>
<body>
<main>
<h3>Hello! This is a simple bookstore application consisting of three services as shown below</h3>
<table>
<tr><th>name</th><th>children</th></tr>
<tr><td>productpage</td><td>{{.Details}}, {{.Reviews}}</td></tr>
<tr><td>{{.Details}}</td><td></td></tr>
<tr><td>{{.Reviews}}</td><td>{{.Ratings}}</td></tr>
</table>
<p>Click on one of the links below to auto generate a request to the backend as a real user or a tester</p>
<ul>
<li><a href="productpage?u=normal">Normal user</a></li>
<li><a href="productpage?u=test">Test user</a></li>
</ul>
</main>
</body>
</html>
`))

var productTemplate = template.Must(template.New("productpage").Funcs(template.FuncMap{
	"stars": func(n int) int { return min(max(n, 0), 5) },
	"rest":  func(n int) int { return 5 - min(max(n, 0), 5) },
}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Simple Bookstore App</title>
<link rel="stylesheet" href="static/style.css">
</head>
<body>
<nav>
<a href="#">BookInfo Sample</a>
{{if .User -}}
<span>{{.User}} <a href="logout">Sign out</a></span>
{{- else -}}
<details>
<summary>Sign in</summary>
<form method="post" action="login" name="login_form">
<label>Username <input id="username" name="username" required></label>
<label>Password <input id="password" name="passwd" type="password"></label>
<button type="submit">Sign in</button>
</form>
</details>
{{- end}}
</nav>
<main>
<h1>{{.Book.Title}}</h1>
<p>{{.Book.Description}}</p>
{{if eq .DetailsStatus 200 -}}
<h4>Book Details</h4>
<table>
<tr><th>ISBN-10</th><th>Publisher</th><th>Pages</th><th>Type</th><th>Language</th></tr>
<tr><td>{{.Details.ISBN10}}</td><td>{{.Details.Publisher}}</td><td>{{.Details.Pages}}</td><td>{{.Details.Type}}</td><td>{{.Details.Language}}</td></tr>
</table>
{{- else -}}
<p class="text-red-500">Error fetching product details</p>
<p>{{.Details.Error}}</p>
{{- end}}
{{if eq .ReviewsStatus 200 -}}
<h4>Book Reviews</h4>
{{- $from := .Reviews}}
{{range .Reviews.Reviews -}}
<section>
{{with .Rating -}}
{{if .Stars -}}
<div class="text-{{.Color}}-500">
{{range stars .Stars}}<span class="glyphicon glyphicon-star">&#9733;</span>{{end}}{{range rest .Stars}}<span>&#9734;</span>{{end}}
</div>
{{- else if .Error -}}
<p class="text-red-500">{{.Error}}</p>
{{- end}}
{{- end}}
<blockquote>"{{.Text}}"</blockquote>
<p>{{.Reviewer}}</p>
<p>Reviews served by: <code>{{$from.Pod}}</code>{{if ne $from.Cluster "null"}} on cluster <code>{{$from.Cluster}}</code>{{end}}</p>
</section>
{{end}}
{{- else -}}
<p class="text-red-500">Error fetching product reviews</p>
<p>{{.Reviews.Error}}</p>
{{- end}}
</main>
</body>
</html>
`))

const style = `body { margin: 0; font-family: sans-serif; color: #111827; }
nav { display: flex; justify-content: space-between; padding: 1rem 2rem; background: #1f2937; color: #f9fafb; }
nav a { color: #f9fafb; }
nav form { display: flex; flex-direction: column; gap: .5rem; padding: .5rem 0; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem 2rem; }
h1 { color: #1e3a8a; }
h4 { font-size: 1.5rem; }
table { border-collapse: collapse; }
th, td { padding: .5rem; border: 1px solid #d1d5db; text-align: left; }
section { padding: 1rem 0; }
blockquote { margin: .5rem 0; font-size: 1.25rem; font-weight: 600; }
.text-black-500 { color: #000; }
.text-red-500 { color: #ef4444; }
`

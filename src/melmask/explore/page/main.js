/** Starts the page with the server that sent it. */
import { startApp } from "./app.js";
import { ServerSource } from "./server_source.js";

startApp(new ServerSource(new URLSearchParams(location.search).get("token") ?? ""));

/** Starts the page: with the data that an exported page holds, or else with the server that sent the page. */
import { startApp } from "./app.js";
import { ServerSource } from "./server_source.js";

if (document.getElementById("melmask-data")) startApp(await (await import("./static_source.js")).open());
else startApp(new ServerSource(new URLSearchParams(location.search).get("token") ?? ""));
